//! Converts between the structures of the FUSE protocol and of the filesystem.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, ReplyXattr};
use inlay_store::format::{Attr, Device, FileKind, Timestamp};

use crate::fs::{BLOCK_SIZE, Emit, Found, SnapshotFs, XattrAnswer};
use crate::host::Attached;
use crate::numbers::Numbers;

pub(super) fn xattr_reply(answer: XattrAnswer<'_>, reply: ReplyXattr) {
    match answer {
        XattrAnswer::Size(len) => reply.size(len),
        XattrAnswer::Bytes(bytes) => reply.data(&bytes),
    }
}

/// Converts the result of a reply's `add`: whether the buffer was full.
pub(super) fn taken(full: bool) -> Emit {
    if full { Emit::Full } else { Emit::More }
}

/// Negative entry: inode number 0 tells the kernel that the name does not exist and that it may
/// cache this. It would not cache the error `ENOENT`.
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

/// Reply to an ioctl for inode flags: an integer for `FS_IOC_GETFLAGS`, a `struct fsxattr` for
/// `FS_IOC_FSGETXATTR`.
pub(super) const NO_FLAGS: [u8; 28] = [0; 28];

/// Returns the reply length of an ioctl for inode flags, `None` for other ioctls. The kernel passes
/// an integer of four bytes, although the ioctl number encodes the size of a `long`.
pub(super) fn flags_len(control: u32) -> Option<usize> {
    match control {
        FS_IOC_GETFLAGS | FS_IOC32_GETFLAGS => Some(4),
        FS_IOC_FSGETXATTR => Some(28),
        _ => None,
    }
}

const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC32_GETFLAGS: u32 = 0x8004_6601;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;

/// Returns the attributes that programs see.
pub(super) fn file_attr(attached: &Attached, fs: &SnapshotFs, found: &Found) -> FileAttr {
    let Attr { kind, perm, uid, gid, nlink, size, blocks, mtime, device } = found.attr;
    let (time, numbers) = (system_time(mtime), attached.numbers());
    let changed = match numbers {
        // An earlier version may have shown this time to programs, and some compare a file with
        // itself.
        Numbers::OfTheKernel => time,
        Numbers::From { .. } => system_time(fs.changed(found.inode, &found.attr)),
    };
    FileAttr {
        ino: INodeNo(numbers.of(attached.slot(), found.inode)),
        size,
        blocks,
        atime: time,
        mtime: time,
        ctime: changed,
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

/// Encodes a device number in the kernel's 32-bit form (`new_encode_dev`): 12 bits of major, 20
/// bits of minor.
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
