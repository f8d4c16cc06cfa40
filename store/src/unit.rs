//! Splits the decoded bytes of a group into units that can be verified one by one.
//!
//! The index has the BLAKE3 of a group's decoded bytes. A [`UnitTree`] holds the chaining values of
//! the group's units, verified against that digest, so that a reader can check a unit without the
//! other ones, and regardless of how it was compressed.

use std::ops::Range;

use crate::blake3_tree::{self, ChainingValue};
use crate::format::FormatError;
use crate::format::layout::GROUP_RAW_LEN_MAX;
use crate::ids::{DecodedDigest, Digest};

/// Length of a unit, in decoded bytes; the last unit of a group may be shorter. A power of two, so
/// that units are whole subtrees of BLAKE3.
pub const UNIT_LEN: u32 = 64 << 10;
/// The maximum number of units in a group.
pub const UNITS_MAX: u32 = GROUP_RAW_LEN_MAX / UNIT_LEN;

/// The number of a unit in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitIdx(pub u32);

impl UnitIdx {
    /// Returns the unit that holds byte `offset` of the decoded group.
    pub const fn at(offset: u32) -> Self {
        Self(offset / UNIT_LEN)
    }

    /// Returns the range of this unit in a group of `raw_len` decoded bytes; `None` if the group
    /// has fewer units.
    pub fn range(self, raw_len: u32) -> Option<Range<u32>> {
        let start = self.0.checked_mul(UNIT_LEN).filter(|start| *start < raw_len)?;
        Some(start..start.saturating_add(UNIT_LEN).min(raw_len))
    }
}

/// Returns the number of units in a group of `raw_len` decoded bytes.
pub const fn unit_count(raw_len: u32) -> u32 {
    raw_len.div_ceil(UNIT_LEN)
}

/// The chaining values of all units of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitTree {
    raw_len: u32,
    values: Vec<ChainingValue>,
}

impl UnitTree {
    /// Computes the tree of a group from its decoded bytes: 1 to [`GROUP_RAW_LEN_MAX`] of them.
    ///
    /// # Errors
    /// If `decoded` has another length.
    pub fn of(decoded: &[u8]) -> Result<Self, FormatError> {
        let raw_len = checked_len(u32::try_from(decoded.len()).unwrap_or(u32::MAX))?;
        let count = unit_count(raw_len);
        let values = (0u64..)
            .zip(decoded.chunks(UNIT_LEN as usize))
            .map(|(place, unit)| blake3_tree::chaining_value(place, count.into(), UNIT_LEN, unit))
            .collect();
        Ok(Self { raw_len, values })
    }

    /// Verifies the chaining values of a group of `raw_len` decoded bytes.
    ///
    /// # Errors
    /// If `raw_len` is 0 or exceeds [`GROUP_RAW_LEN_MAX`], or if these are not the chaining values
    /// of a group with this digest.
    pub fn verified(
        raw_len: u32,
        values: Vec<[u8; 32]>,
        expected: DecodedDigest,
    ) -> Result<Self, FormatError> {
        let raw_len = checked_len(raw_len)?;
        if values.len() != unit_count(raw_len) as usize {
            return Err(FormatError::corrupt("number of units of a group", values.len()));
        }
        let tree = Self { raw_len, values };
        let found = tree.digest();
        if found != expected {
            return Err(FormatError::Digest {
                what: "the units of a group".to_owned(),
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        Ok(tree)
    }

    /// Returns the digest of the decoded group.
    pub fn digest(&self) -> DecodedDigest {
        DecodedDigest(blake3_tree::root(self.raw_len.into(), UNIT_LEN, &self.values))
    }

    /// Returns the chaining values, one for each unit.
    pub fn values(&self) -> &[[u8; 32]] {
        &self.values
    }

    /// Checks that `bytes` are those of `unit`.
    ///
    /// # Errors
    /// If they are not, or if the group has no such unit.
    pub fn check(&self, unit: UnitIdx, bytes: &[u8]) -> Result<(), FormatError> {
        let missing = || FormatError::corrupt("no such unit in a group", unit.0);
        let range = unit.range(self.raw_len).ok_or_else(missing)?;
        let expected = self.values.get(unit.0 as usize).ok_or_else(missing)?;
        if bytes.len() != range.len() {
            return Err(FormatError::Truncated {
                have: bytes.len() as u64,
                want: range.len() as u64,
            });
        }
        let count = self.values.len() as u64;
        let found = blake3_tree::chaining_value(unit.0.into(), count, UNIT_LEN, bytes);
        if found != *expected {
            return Err(FormatError::Digest {
                what: format!("unit {} of a group", unit.0),
                expected: Digest::from_bytes(*expected).to_hex(),
                found: Digest::from_bytes(found).to_hex(),
            });
        }
        Ok(())
    }
}

fn checked_len(raw_len: u32) -> Result<u32, FormatError> {
    if (1..=GROUP_RAW_LEN_MAX).contains(&raw_len) {
        return Ok(raw_len);
    }
    Err(FormatError::TooLarge {
        what: "a group's decoded size",
        found: raw_len.into(),
        limit: GROUP_RAW_LEN_MAX.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"group").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn units(decoded: &[u8]) -> impl Iterator<Item = (UnitIdx, &[u8])> {
        (0..).map(UnitIdx).zip(decoded.chunks(UNIT_LEN as usize))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn each_unit_passes_at_its_own_place_only(len in 1usize..400_000) {
            let decoded = group(len);
            let of = UnitTree::of(&decoded).unwrap();
            prop_assert_eq!(of.digest(), DecodedDigest(Digest::of(&decoded)));
            let raw_len = u32::try_from(len).unwrap();
            let tree = UnitTree::verified(raw_len, of.values().to_vec(), of.digest()).unwrap();
            for (unit, bytes) in units(&decoded) {
                tree.check(unit, bytes).unwrap();
                let range = unit.range(raw_len).unwrap();
                prop_assert_eq!(&decoded[range.start as usize..range.end as usize], bytes);
                prop_assert!(UnitIdx::at(range.start) == unit && UnitIdx::at(range.end - 1) == unit);
                prop_assert!(tree.check(UnitIdx(unit.0 + 1), bytes).is_err());
            }
            prop_assert_eq!(units(&decoded).count(), unit_count(raw_len) as usize);
        }

        #[test]
        fn no_changed_byte_and_no_other_tree_passes(
            len in 1usize..300_000,
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut decoded = group(len);
            let tree = UnitTree::of(&decoded).unwrap();
            let at = at.index(len);
            decoded[at] ^= flip;
            let unit = UnitIdx::at(u32::try_from(at).unwrap());
            let (_, bytes) = units(&decoded).nth(unit.0 as usize).unwrap();
            prop_assert!(tree.check(unit, bytes).is_err());
            prop_assert!(tree.check(unit, &bytes[1..]).is_err());
            let other = UnitTree::of(&decoded).unwrap().values().to_vec();
            let raw_len = u32::try_from(len).unwrap();
            prop_assert!(UnitTree::verified(raw_len, other, tree.digest()).is_err());
            let fewer = tree.values()[1..].to_vec();
            prop_assert!(UnitTree::verified(raw_len, fewer, tree.digest()).is_err());
        }
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        assert!(UnitTree::of(&[]).is_err());
        let digest = DecodedDigest(Digest::of(b""));
        for raw_len in [0, GROUP_RAW_LEN_MAX + 1, u32::MAX] {
            assert!(UnitTree::verified(raw_len, Vec::new(), digest).is_err(), "{raw_len}");
        }
        assert_eq!(UnitIdx(u32::MAX).range(u32::MAX), None);
        assert_eq!(unit_count(GROUP_RAW_LEN_MAX), UNITS_MAX);
    }
}
