//! How much disk the cache may take: as it is said, as it is remembered, and in bytes.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::disk::{Disk, Space};
use crate::units::ByteSize;

/// How much disk a cache may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Budget {
    /// A fifth of the file system, but never more than what the cache already has and half of what
    /// is free: so it grows slower the fuller the disk is, and gives back when others fill it.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(ByteSize),
    /// So many per cent of the file system.
    Percent(u8),
}

/// A text that is no budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no cache size: write a size such as 20G, a share of the disk such as 20%, or auto"
)]
pub struct BudgetError(String);

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(size) => write!(f, "{}", size.0),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let wrong = || BudgetError(text.to_owned());
        let trimmed = text.trim();
        if trimmed == "auto" {
            return Ok(Self::Auto);
        }
        match trimmed.strip_suffix('%') {
            Some(number) => number
                .trim()
                .parse()
                .ok()
                .filter(|percent| (1..=100).contains(percent))
                .map(Self::Percent)
                .ok_or_else(wrong),
            None => trimmed.parse().map(Self::Bytes).map_err(|_| wrong()),
        }
    }
}

impl Budget {
    /// In bytes, for a cache that takes `used` of a disk of this size.
    pub(super) fn bytes(self, space: Option<Space>, used: u64) -> u64 {
        let Some(space) = space else {
            // A disk that can't be asked bounds nothing but by being full.
            return match self {
                Self::Bytes(size) => size.0,
                Self::Auto | Self::Percent(_) => u64::MAX,
            };
        };
        match self {
            Self::Bytes(size) => size.0,
            Self::Percent(percent) => space.total / 100 * u64::from(percent),
            Self::Auto => (space.total / 5).min(used.saturating_add(space.free / 2)),
        }
    }

    /// What was last said of the cache at `dir`.
    pub(super) fn remembered(dir: &Path) -> Option<Self> {
        std::fs::read_to_string(dir.join(FILE)).ok()?.parse().ok()
    }

    /// Remembers it for all who open the cache at `dir` and say nothing.
    pub(super) fn remember(
        self,
        disk: &dyn Disk,
        dir: &Path,
        staged: &Path,
    ) -> std::io::Result<()> {
        if Self::remembered(dir) == Some(self) {
            return Ok(());
        }
        std::fs::write(staged, self.to_string())?;
        disk.rename(staged, &dir.join(FILE))
    }
}

const FILE: &str = "budget";

/// Where eviction begins and ends, in per mille of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// When the cache takes more than this, the least recently used goes. Default 900.
    pub high: u16,
    /// Until it takes no more than this. Default 800.
    pub low: u16,
}

impl Default for Marks {
    fn default() -> Self {
        Self { high: 900, low: 800 }
    }
}

impl Marks {
    pub(super) fn high_of(self, budget: u64) -> u64 {
        part(budget, self.high)
    }

    pub(super) fn low_of(self, budget: u64) -> u64 {
        part(budget, self.low.min(self.high))
    }
}

fn part(budget: u64, per_mille: u16) -> u64 {
    let part = u128::from(budget) * u128::from(per_mille.min(1000)) / 1000;
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_and_shown() {
        for (text, budget) in [
            ("auto", Budget::Auto),
            ("20%", Budget::Percent(20)),
            ("4096", Budget::Bytes(ByteSize(4096))),
            ("2G", Budget::Bytes(ByteSize(2 << 30))),
        ] {
            assert_eq!(text.parse(), Ok(budget));
            assert_eq!(budget.to_string().parse(), Ok(budget));
        }
        for text in ["", "%", "0%", "101%", "1.5%", "-1%", "much"] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_budget_knows_the_disk() {
        let space = Some(Space { total: 1000, free: 100 });
        assert_eq!(Budget::Auto.bytes(space, 20), 70);
        assert_eq!(Budget::Auto.bytes(Some(Space { total: 1000, free: 900 }), 0), 200);
        assert_eq!(Budget::Percent(30).bytes(space, 0), 300);
        assert_eq!(Budget::Bytes(ByteSize(7)).bytes(space, 0), 7);
        assert_eq!(Budget::Auto.bytes(None, 0), u64::MAX);
        let marks = Marks::default();
        assert_eq!((marks.high_of(1000), marks.low_of(1000)), (900, 800));
        assert_eq!(marks.high_of(u64::MAX), u64::MAX / 1000 * 900 + 553);
    }
}
