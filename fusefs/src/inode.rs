//! How inode numbers that the kernel sees map to inodes of mounted snapshots, and back.
//!
//! A number is a pure function of the snapshot's slot and the inode's place in its index, so that
//! it stays the same whoever serves the mount: `slot << 32 | place`, plus one, because 0 means "no
//! inode" to the kernel and 1 is the root of the mount. Places are below 2^28 and slots below 2^24:
//! bits 56 to 63 stay clear for overlayfs, which puts the number of a layer there (`xino`).

use fuser::INodeNo;
use inlay_store::format::InodeIdx;

use crate::error::FsError;

/// Which of the snapshots below one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// How many slots there are.
    pub const LIMIT: u32 = 1 << 24;

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The slot `number`, if it is below [`Slot::LIMIT`].
    pub const fn new(number: u32) -> Option<Self> {
        if number < Self::LIMIT { Some(Self(number)) } else { None }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The number that the kernel knows the inode by.
pub(crate) fn number(slot: Slot, inode: InodeIdx) -> INodeNo {
    INodeNo((u64::from(slot.0) << 32 | u64::from(inode.0)) + 1)
}

/// The inode behind a number that came from the kernel.
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
