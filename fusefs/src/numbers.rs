//! Assigns the inode numbers that programs see.
//!
//! They differ from the node IDs that identify an inode between the kernel and this server
//! ([`crate::inode`]), which carry the slot in their upper half. Many programs keep an inode number
//! in 32 bits (a 32-bit `stat` fails with `EOVERFLOW`, git keeps the low half) or in a double with
//! its 53 bits (JavaScript), so programs see small numbers: the inode's index in its snapshot plus
//! a base.
//!
//! - Parts of a snapshot are visible only through overlays, and each overlay has its own device
//!   numbers. All parts use the base [`FIRST`], so a tree has the same numbers wherever it is
//!   mounted.
//! - A whole snapshot may be mounted directly. All whole snapshots of a connection share one device
//!   number, so each has its own base. The base is derived from the snapshot, so a snapshot gets
//!   the same numbers again unless another attached snapshot overlaps them.

use std::ops::Range;

use inlay_store::format::InodeIdx;
use inlay_store::ids::Digest;

use crate::inode::{self, Slot};

/// Inode number of a part's root directory. 1 is the root of a connection.
pub(crate) const FIRST: u64 = 2;
/// Numbers below fit into 32 bits.
const SMALL: u64 = 1 << 32;
/// Numbers below are preferred: some programs use a signed 32-bit integer.
const PREFERRED: u64 = 1 << 31;
/// Numbers below fit into a double.
const LIMIT: u64 = 1 << 53;

/// Inode numbering of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// The kernel's node IDs. Used for slots of earlier versions: programs have already seen these
    /// numbers.
    OfTheKernel,
    /// The inode's index plus `first`. `count` numbers are reserved for this slot, 0 for a part.
    From {
        /// Number of the root directory.
        first: u64,
        /// Number of inodes.
        count: u32,
    },
}

impl Numbers {
    /// Numbering of a slot that shows a part of a snapshot.
    pub(crate) const PART: Self = Self::From { first: FIRST, count: 0 };

    /// Returns `count` numbers that overlap none of the slots in `taken`. Slots of the same
    /// snapshot, identified by the digest `seed`, get the same numbers if possible. `None` if no
    /// range is free.
    pub(crate) fn apart(
        seed: Digest,
        count: u32,
        taken: impl Iterator<Item = (Slot, Self)>,
    ) -> Option<Self> {
        let mut taken: Vec<_> = taken.filter_map(|(slot, numbers)| numbers.range(slot)).collect();
        taken.sort_unstable_by_key(|range| range.start);
        let len = u64::from(count);
        let fits = |first: u64| {
            let end = first + len;
            end <= LIMIT && taken.iter().all(|range| range.end <= first || end <= range.start)
        };
        let wanted =
            PREFERRED.checked_sub(FIRST + len).map(|room| FIRST + low_half(seed) % (room + 1));
        let after = taken.iter().map(|range| range.end);
        let first = wanted.into_iter().chain([FIRST]).chain(after).find(|first| fits(*first))?;
        Some(Self::From { first, count })
    }

    /// Returns the number of an inode.
    pub(crate) fn of(self, slot: Slot, inode: InodeIdx) -> u64 {
        match self {
            Self::OfTheKernel => inode::number(slot, inode).0,
            Self::From { first, .. } => first.saturating_add(inode.0.into()),
        }
    }

    /// Returns the numbers that no other slot of the connection may use.
    fn range(self, slot: Slot) -> Option<Range<u64>> {
        match self {
            Self::OfTheKernel => {
                let first = inode::number(slot, InodeIdx::ROOT).0;
                Some(first..first + SMALL)
            }
            Self::From { count: 0, .. } => None,
            Self::From { first, count } => Some(first..first.saturating_add(count.into())),
        }
    }
}

fn low_half(digest: Digest) -> u64 {
    let half = digest.as_bytes().first_chunk::<4>().copied().unwrap_or_default();
    u64::from(u32::from_le_bytes(half))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(number: usize) -> Slot {
        Slot::new(u32::try_from(number).unwrap()).unwrap()
    }

    fn ranges(given: &[Numbers]) -> Vec<Range<u64>> {
        let range = |(number, numbers): (usize, &Numbers)| numbers.range(slot(number + 1));
        let mut ranges: Vec<_> = given.iter().enumerate().filter_map(range).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }

    proptest! {
        /// Slots come and go; no two concurrent slots share a number, all numbers fit into a
        /// double, and those of moderate trees into 32 bits.
        #[test]
        fn no_two_slots_share_a_number(
            steps in prop::collection::vec((any::<u8>(), 1..=1_u32 << 28, 0..3_u8), 1..40),
        ) {
            let mut given: Vec<Numbers> = Vec::new();
            for (seed, count, what) in steps {
                if what == 0 && !given.is_empty() {
                    // The last one: earlier slots keep their numbers.
                    given.pop();
                    continue;
                }
                let seed = Digest::of(&[seed]);
                let taken = given.iter().enumerate().map(|(at, numbers)| (slot(at + 1), *numbers));
                given.push(match what {
                    1 => Numbers::OfTheKernel,
                    _ => Numbers::apart(seed, count, taken).expect("there is room"),
                });
                let ranges = ranges(&given);
                prop_assert!(ranges.is_sorted_by(|a, b| a.end <= b.start), "{ranges:?}");
                prop_assert!(ranges.iter().all(|range| range.end <= LIMIT && range.start >= FIRST));
            }
        }

        #[test]
        fn a_snapshot_gets_the_numbers_again_that_it_had(seed: [u8; 4], count in 1..1_u32 << 28) {
            let apart = || Numbers::apart(Digest::of(&seed), count, std::iter::empty()).unwrap();
            prop_assert_eq!(apart(), apart());
            let Numbers::From { first, .. } = apart() else { unreachable!() };
            prop_assert!(first >= FIRST && first + u64::from(count) <= SMALL);
        }

        #[test]
        fn numbers_of_a_slot_differ(a in 0..1_u32 << 28, b in 0..1_u32 << 28, first in 2..1_u64 << 52) {
            for numbers in [Numbers::OfTheKernel, Numbers::PART, Numbers::From { first, count: 7 }] {
                let of = |place| numbers.of(slot(3), InodeIdx(place));
                prop_assert_eq!(of(a) == of(b), a == b);
            }
        }
    }

    #[test]
    fn sixteen_of_the_largest_snapshots_have_32_bits_and_the_next_have_more() {
        let mut given: Vec<Numbers> = Vec::new();
        for _ in 0..40 {
            let taken = given.iter().enumerate().map(|(at, numbers)| (slot(at + 1), *numbers));
            let numbers = Numbers::apart(Digest::of(b"one"), 1 << 28, taken).unwrap();
            given.push(numbers);
        }
        let small = ranges(&given).iter().filter(|range| range.end <= SMALL).count();
        assert!((14..=16).contains(&small), "{small}");
    }
}
