//! The thin layer between the FUSE protocol and [`SnapshotFs`]: it translates and decides nothing.
//!
//! The kernel remembers every answer practically for ever, because snapshots never change: entries,
//! absent names, attributes, links, listings and pages. It checks permissions itself, ACLs too.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};
use inlay_store::format::{Attr, Device, FileKind, InodeIdx, Timestamp};

use crate::counters::{RequestCounters, count};
use crate::errno::errno;
use crate::error::FsError;
use crate::fs::{
    Answered, BLOCK_SIZE, DirOffset, Emit, Found, READ_LEN_MAX, Seek, SnapshotFs, Viewer,
    XattrAnswer,
};
use crate::inode::{self, Slot};
use crate::limiter::{Line, LogLimiter};

/// 35,000 years. The kernel adds it to its clock in ticks, so the longest `Duration` would overflow.
const FOR_EVER: Duration = Duration::from_secs(1 << 40);

/// How many requests that nobody waits for (read-ahead, mostly) the kernel has in flight at once.
/// Together with one request for each thread that waits in a system call or page fault, this bounds
/// the reads that wait for the content source.
const MAX_BACKGROUND: u16 = 256;

/// Inode numbers are never used twice while a mount lives.
const GENERATION: Generation = Generation(0);

/// What the kernel should do, where it can.
const WANTED: [InitFlags; 5] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_DIO,
];

/// A snapshot at the root of a FUSE mount.
#[derive(Debug)]
pub(crate) struct Adapter {
    fs: SnapshotFs,
    shared: Arc<Shared>,
}

/// What replies on other threads need, too.
#[derive(Debug)]
struct Shared {
    counters: Arc<RequestCounters>,
    limiter: LogLimiter,
}

impl Adapter {
    pub(crate) fn new(fs: SnapshotFs, counters: Arc<RequestCounters>) -> Self {
        Self { fs, shared: Arc::new(Shared { counters, limiter: LogLimiter::default() }) }
    }

    /// Counts a request and runs it on the inode that it is about.
    fn on<T>(
        &self,
        counter: impl Fn(&RequestCounters) -> &AtomicU64,
        ino: INodeNo,
        request: impl FnOnce(InodeIdx) -> Result<T, FsError>,
    ) -> Result<T, Errno> {
        count(counter(&self.shared.counters));
        snapshot_inode(ino).and_then(request).map_err(|error| self.shared.refuse(&error))
    }
}

impl Shared {
    /// The error number for a request that failed. Damage and failing stores go to the log.
    fn refuse(&self, error: &FsError) -> Errno {
        if error.is_failure() {
            count(&self.counters.failed);
            match self.limiter.line(Instant::now()) {
                Line::Write { held_back: 0 } => tracing::error!("I/O error: {error}"),
                Line::Write { held_back } => {
                    tracing::error!("I/O error: {error} (and {held_back} more before)");
                }
                Line::HoldBack => {}
            }
        }
        errno(error)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it, the kernel would let everybody in whom an ACL keeps out.
        config.add_capabilities(InitFlags::FUSE_POSIX_ACL).map_err(|_| {
            io::Error::new(io::ErrorKind::Unsupported, "this kernel's FUSE can't enforce ACLs")
        })?;
        for wanted in WANTED {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!(?wanted, "the kernel does not offer this: more requests will come");
            }
        }
        // Sets the size of reads, too. None of these is refused: all are in range.
        let _ = config.set_max_write(READ_LEN_MAX);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.on(|c| &c.lookup, parent, |dir| self.fs.lookup(dir, name.as_bytes())) {
            Ok(Some(found)) => reply.entry(&FOR_EVER, &file_attr(&found), GENERATION),
            Ok(None) => reply.entry(&FOR_EVER, &ABSENT, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found =
            self.on(|c| &c.getattr, ino, |inode| Ok(Found { inode, attr: self.fs.attr(inode)? }));
        match found {
            Ok(found) => reply.attr(&FOR_EVER, &file_attr(&found)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.on(|c| &c.readlink, ino, |inode| self.fs.readlink(inode)) {
            Ok(target) => reply.data(target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.on(
            |c| &c.open,
            ino,
            |inode| match flags.acc_mode() {
                OpenAccMode::O_RDONLY => self.fs.open(inode),
                OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => Err(FsError::ReadOnly),
            },
        );
        match opened {
            // There is nothing to remember for an open file, so that a handle outlives its server.
            Ok(()) => reply
                .opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inode = match snapshot_inode(ino) {
            Ok(inode) => inode,
            Err(error) => return reply.error(self.shared.refuse(&error)),
        };
        let shared = Arc::clone(&self.shared);
        self.fs.read(inode, offset, size, move |answered, outcome| {
            count(match answered {
                Answered::Now => &shared.counters.read_hit,
                Answered::Later => &shared.counters.read_miss,
            });
            match outcome {
                Ok(bytes) => reply.data(bytes),
                Err(error) => reply.error(shared.refuse(&error)),
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: fuser::ReplyEmpty,
    ) {
        count(&self.shared.counters.release);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.on(|c| &c.opendir, ino, |inode| self.fs.open_dir(inode)) {
            Ok(()) => reply
                .opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.on(
            |c| &c.readdir,
            ino,
            |dir| {
                self.fs.read_dir(dir, DirOffset(offset), |item| {
                    let number = inode::number(Slot::ROOT, item.inode);
                    let name = OsStr::from_bytes(item.name);
                    Ok(taken(reply.add(number, item.next.0, file_type(item.kind), name)))
                })
            },
        );
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.on(
            |c| &c.readdirplus,
            ino,
            |dir| {
                self.fs.read_dir(dir, DirOffset(offset), |item| {
                    let attr = file_attr(&self.fs.dir_item_attr(dir, item)?);
                    let name = OsStr::from_bytes(item.name);
                    Ok(taken(reply.add(attr.ino, item.next.0, name, &FOR_EVER, &attr, GENERATION)))
                })
            },
        );
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        reply: fuser::ReplyEmpty,
    ) {
        count(&self.shared.counters.releasedir);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        count(&self.shared.counters.statfs);
        let s = self.fs.statfs();
        reply.statfs(s.blocks, 0, 0, s.files, 0, s.block_size, s.name_len_max, s.block_size);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes();
        xattr_reply(self.on(|c| &c.getxattr, ino, |inode| self.fs.xattr(inode, name, size)), reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let viewer = if request.uid() == 0 { Viewer::Root } else { Viewer::User };
        let names =
            self.on(|c| &c.listxattr, ino, |inode| self.fs.xattr_names(inode, viewer, size));
        xattr_reply(names, reply);
    }

    /// Snapshots have no inode flags and no other controls; overlayfs and cp ask for them often.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        count(&self.shared.counters.ioctl);
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let place = self.on(
            |c| &c.lseek,
            ino,
            |inode| {
                let seek = match whence {
                    libc::SEEK_DATA => Seek::Data,
                    libc::SEEK_HOLE => Seek::Hole,
                    _ => return Err(FsError::Invalid("a seek that the kernel does itself")),
                };
                let offset = u64::try_from(offset).map_err(|_| FsError::NothingAfter)?;
                // In range: no file is longer than `i64::MAX`.
                Ok(i64::try_from(self.fs.seek(inode, offset, seek)?).unwrap_or(i64::MAX))
            },
        );
        match place {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }
}

/// The one snapshot is in the first slot.
fn snapshot_inode(ino: INodeNo) -> Result<InodeIdx, FsError> {
    match inode::inode(ino)? {
        (Slot::ROOT, inode) => Ok(inode),
        _ => Err(FsError::UnknownInode(ino.0)),
    }
}

fn xattr_reply(answer: Result<XattrAnswer<'_>, Errno>, reply: ReplyXattr) {
    match answer {
        Ok(XattrAnswer::Size(len)) => reply.size(len),
        Ok(XattrAnswer::Bytes(bytes)) => reply.data(&bytes),
        Err(errno) => reply.error(errno),
    }
}

/// What the reply's `add` returns: whether the entry had no room.
fn taken(full: bool) -> Emit {
    if full { Emit::Full } else { Emit::More }
}

/// The inode number 0 in an entry tells the kernel that there is no such name, and may be
/// remembered; the error `ENOENT` would be asked for again.
const ABSENT: FileAttr = FileAttr {
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

fn file_attr(found: &Found) -> FileAttr {
    let Attr { kind, perm, uid, gid, nlink, size, blocks, mtime, device } = found.attr;
    let time = system_time(mtime);
    FileAttr {
        ino: inode::number(Slot::ROOT, found.inode),
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

fn file_type(kind: FileKind) -> FileType {
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
