//! Translations between the protocol's structures and the filesystem's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyXattr};
use inlay_store::format::{Attr, Device, FileKind, Timestamp};

use crate::fs::{BLOCK_SIZE, Emit, Found, XattrAnswer};
use crate::inode::{self, Slot};

pub(super) fn xattr_reply(answer: Result<XattrAnswer<'_>, Errno>, reply: ReplyXattr) {
    match answer {
        Ok(XattrAnswer::Size(len)) => reply.size(len),
        Ok(XattrAnswer::Bytes(bytes)) => reply.data(&bytes),
        Err(errno) => reply.error(errno),
    }
}

/// What the reply's `add` returns: whether the entry had no room.
pub(super) fn taken(full: bool) -> Emit {
    if full { Emit::Full } else { Emit::More }
}

/// The inode number 0 in an entry tells the kernel that there is no such name, and may be
/// remembered; the error `ENOENT` would be asked for again.
pub(super) const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK_SIZE,
    flags: 0,
};

pub(super) fn file_attr(slot: Slot, found: &Found) -> FileAttr {
    let Attr { kind, perm, uid, gid, nlink, size, blocks, mtime, device } = found.attr;
    let time = system_time(mtime);
    FileAttr {
        ino: inode::number(slot, found.inode),
        size,
        blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(kind),
        perm,
        nlink,
        uid,
        gid,
        rdev: device_number(device),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// The kernel's 32-bit form (`new_encode_dev`): 12 bits of major, 20 bits of minor.
fn device_number(Device { major, minor }: Device) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Every timestamp of an index fits: both count seconds in an `i64`.
fn system_time(Timestamp { secs, nanos }: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let time = if secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device_number(Device { major: 1, minor: 3 }), 0x103);
        assert_eq!(device_number(Device { major: 0xabc, minor: 0xfedcb }), 0xfeda_bccb);
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = system_time(Timestamp { secs: -2, nanos: 500_000_000 });
        assert_eq!(time, UNIX_EPOCH - Duration::from_millis(1500));
        assert!(system_time(Timestamp { secs: i64::MIN, nanos: 0 }) < UNIX_EPOCH);
        assert!(system_time(Timestamp { secs: i64::MAX, nanos: 999_999_999 }) > UNIX_EPOCH);
    }
}
