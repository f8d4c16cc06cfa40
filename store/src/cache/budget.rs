//! Parses, persists and computes the disk budget of a cache.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::disk::{Disk, DiskSpace};
use crate::units::ByteSize;

/// The maximum disk usage of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Budget {
    /// A fifth of the filesystem, but never more than the cache's current usage plus half of the
    /// free space. The cache grows more slowly as the disk fills up, and shrinks when other files
    /// fill it.
    #[default]
    Auto,
    /// A fixed number of bytes.
    Bytes(ByteSize),
    /// A percentage of the filesystem, 1 to 100.
    Percent(u8),
}

/// The text is not a budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a cache size: use a size such as 20G, a share of the disk such as 20%, or auto"
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
    /// Returns the budget in bytes, for a cache that uses `used` bytes of a disk with this `space`.
    pub(super) fn bytes(self, space: Option<DiskSpace>, used: u64) -> u64 {
        let Some(space) = space else {
            // Without disk statistics, only a full disk limits the cache.
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

    /// Returns the budget last persisted for the cache at `dir`.
    pub(super) fn remembered(dir: &Path) -> Option<Self> {
        std::fs::read_to_string(dir.join(FILE)).ok()?.parse().ok()
    }

    /// Persists the budget for processes that open the cache at `dir` without specifying one.
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

/// The thresholds of eviction, in per mille of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Usage above this starts eviction of the least recently used files. Default 900.
    pub high: u16,
    /// Eviction stops at or below this usage. Default 800.
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
        let space = Some(DiskSpace { total: 1000, free: 100 });
        assert_eq!(Budget::Auto.bytes(space, 20), 70);
        assert_eq!(Budget::Auto.bytes(Some(DiskSpace { total: 1000, free: 900 }), 0), 200);
        assert_eq!(Budget::Percent(30).bytes(space, 0), 300);
        assert_eq!(Budget::Bytes(ByteSize(7)).bytes(space, 0), 7);
        assert_eq!(Budget::Auto.bytes(None, 0), u64::MAX);
        let marks = Marks::default();
        assert_eq!((marks.high_of(1000), marks.low_of(1000)), (900, 800));
        assert_eq!(marks.high_of(u64::MAX), u64::MAX / 1000 * 900 + 553);
    }
}
