//! Maps node IDs, by which the kernel identifies inodes, to inodes of attached snapshots, and back.
//!
//! A node ID is a pure function of the snapshot's slot and the inode's index in the snapshot, so
//! that it does not depend on the server process: `slot << 32 | index`, plus one, because 0 means
//! "no inode" to the kernel and 1 is the root of the mount. Indexes are below 2^28 and slots below
//! 2^24: bits 56 to 63 stay clear for overlayfs, which stores the layer number there (`xino`).

use fuser::INodeNo;
use inlay_store::format::InodeIdx;

use crate::error::FsError;

/// Identifies a snapshot below one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// Number of slots.
    pub const LIMIT: u32 = 1 << 24;

    /// Returns the slot number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the slot `number`, if it is below [`Slot::LIMIT`].
    pub const fn new(number: u32) -> Option<Self> {
        if number < Self::LIMIT { Some(Self(number)) } else { None }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns the node ID of an inode.
pub(crate) fn number(slot: Slot, inode: InodeIdx) -> INodeNo {
    INodeNo((u64::from(slot.0) << 32 | u64::from(inode.0)) + 1)
}

/// Returns the inode of a node ID. Fails with `UnknownInode` for IDs that were never assigned.
pub(crate) fn inode(number: INodeNo) -> Result<(Slot, InodeIdx), FsError> {
    let unknown = || FsError::UnknownInode(number.0);
    let place = number.0.checked_sub(1).ok_or_else(unknown)?;
    let slot = u32::try_from(place >> 32).ok().and_then(Slot::new).ok_or_else(unknown)?;
    let inode = u32::try_from(place & u64::from(u32::MAX)).map_err(|_| unknown())?;
    Ok((slot, InodeIdx(inode)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slot_0_is_the_directory_of_all_slots() {
        assert_eq!(number(Slot(0), InodeIdx::ROOT), INodeNo::ROOT);
    }

    #[test]
    fn numbers_that_were_never_given_are_unknown() {
        for odd in [0, 1 << 56 | 1 << 20, u64::MAX] {
            assert!(matches!(inode(INodeNo(odd)), Err(FsError::UnknownInode(n)) if n == odd));
        }
    }

    proptest! {
        #[test]
        fn numbers_go_there_and_back(slot in 0..Slot::LIMIT, place in any::<u32>()) {
            let slot = Slot::new(slot).expect("below the limit");
            let there = number(slot, InodeIdx(place));
            prop_assert!(there.0 != 0 && there.0 <= 1 << 56);
            prop_assert_eq!(inode(there).expect("was given"), (slot, InodeIdx(place)));
        }
    }
}
