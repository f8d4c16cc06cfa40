//! The root directory of a connection, with one entry per attached slot, named by its number.

use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileType, INodeNo};

use crate::fs::BLOCK_SIZE;
use crate::inode::Slot;

/// Attributes of the root directory.
pub(super) const ATTR: FileAttr = FileAttr {
    ino: INodeNo::ROOT,
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::Directory,
    perm: 0o555,
    nlink: 2,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK_SIZE,
    flags: 0,
};

/// Offset of the first slot in a listing, after `.` and `..`.
const DOTS: u64 = 2;

/// Parses a slot name: digits without a sign and without leading zeros.
pub(super) fn slot(name: &[u8]) -> Option<Slot> {
    if !name.iter().all(u8::is_ascii_digit) || name.first() == Some(&b'0') {
        return None;
    }
    Slot::new(std::str::from_utf8(name).ok()?.parse().ok()?)
}

/// Returns the listing offset after the entry of `slot`.
pub(super) fn offset_after(slot: Slot) -> u64 {
    u64::from(slot.get()) + 1 + DOTS
}

/// Returns the first slot of a listing from `offset`.
pub(super) fn first_slot(offset: u64) -> u32 {
    u32::try_from(offset.saturating_sub(DOTS)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slots_own_number_names_it() {
        assert_eq!(slot(b"17"), Slot::new(17));
        for odd in [&b""[..], b"0", b"017", b"+17", b"17 ", b"1 7", b"99999999999", b"\xff"] {
            assert_eq!(slot(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_listing_goes_on_with_the_next_slot() {
        let slot = Slot::new(7).unwrap();
        assert_eq!(first_slot(offset_after(slot)), 8);
        assert_eq!(first_slot(0), 0);
    }
}
