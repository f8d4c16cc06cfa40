//! The thin layer between the FUSE protocol and [`SnapshotFs`]: it finds the snapshot that a request
//! is about, translates, and decides nothing.
//!
//! The kernel remembers every answer practically for ever, because snapshots never change: entries,
//! absent names, attributes, links, listings and pages. It checks permissions itself, ACLs too.

mod attr;
mod root;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use inlay_store::format::InodeIdx;

use crate::counters::{RequestCounters, count};
use crate::errno::errno;
use crate::error::FsError;
use crate::fs::{Answered, DirOffset, Found, READ_LEN_MAX, Seek, SnapshotFs};
use crate::host::{Attached, Host};
use crate::inode::{self, Slot};
use crate::kind::ConnectionKind;
use crate::ledger::Mode;
use crate::limiter::{Line, LogLimiter};
use crate::meter::RequestMeter;
use crate::opens::{Opened, Opening};
use crate::raw::opened_passthrough;
use crate::viewer::viewer;
use attr::{ABSENT, file_attr, file_type, taken, xattr_reply};

/// 35,000 years. The kernel adds it to its clock in ticks, so the longest `Duration` would overflow.
const FOR_EVER: Duration = Duration::from_secs(1 << 40);

/// How many requests that nobody waits for (read-ahead, mostly) the kernel has in flight at once.
/// Together with one request for each thread that waits in a system call or page fault, this bounds
/// the reads that wait for the content source.
const MAX_BACKGROUND: u16 = 256;

/// Inode numbers are never used twice while a connection lives.
const GENERATION: Generation = Generation(0);

/// The number of every open file that is not large.
const SMALL_FILE: FileHandle = FileHandle(0);

/// What the kernel should do, where it can.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PASSTHROUGH,
    // The kernel checks permissions here (`default_permissions`), so views may map owners.
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// One connection to the kernel: the slots of one kind.
#[derive(Debug)]
pub(crate) struct Adapter {
    host: Arc<Host>,
    kind: ConnectionKind,
}

/// What replies on other threads need, too.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Arc<RequestCounters>,
    pub(crate) meter: Arc<RequestMeter>,
    limiter: LogLimiter,
    /// The process is about to end: who comes next answers what would only be an error here.
    leaving: AtomicBool,
}

/// What an inode number stands for.
enum Place {
    /// The directory of the slots.
    Root,
    /// An inode of a snapshot.
    In(Arc<Attached>, InodeIdx),
}

impl Adapter {
    pub(crate) fn new(host: Arc<Host>, kind: ConnectionKind) -> Self {
        Self { host, kind }
    }

    fn place(&self, ino: INodeNo) -> Result<Place, FsError> {
        let (slot, inode) = inode::inode(ino)?;
        match self.host.table.get(slot) {
            Some(attached) if attached.kind() == self.kind => Ok(Place::In(attached, inode)),
            None if ino == INodeNo::ROOT => Ok(Place::Root),
            _ => Err(FsError::UnknownInode(ino.0)),
        }
    }

    /// Counts a request and runs it where it belongs.
    fn at<T>(
        &self,
        counter: impl Fn(&RequestCounters) -> &AtomicU64,
        ino: INodeNo,
        in_root: impl FnOnce() -> Result<T, FsError>,
        in_snapshot: impl FnOnce(&SnapshotFs, Slot, InodeIdx) -> Result<T, FsError>,
    ) -> Result<T, Errno> {
        count(counter(&self.host.shared.counters));
        let outcome = self.place(ino).and_then(|place| match place {
            Place::Root => in_root(),
            Place::In(attached, inode) => in_snapshot(attached.fs()?, attached.slot(), inode),
        });
        outcome.map_err(|error| self.host.shared.refuse(&error))
    }

    /// A panic is a defect; it must cost one request and not the thread that answers them.
    fn guard(&self, request: impl FnOnce()) {
        let _timed = self.host.shared.meter.request();
        if catch_unwind(AssertUnwindSafe(request)).is_err() {
            count(&self.host.shared.counters.failed);
            tracing::error!("a request made its thread panic; it was answered with an I/O error");
        }
    }

    fn root_entry(&self, name: &[u8]) -> Option<Arc<Attached>> {
        let attached = self.host.table.get(root::slot(name)?)?;
        (attached.kind() == self.kind && attached.is_visible()).then_some(attached)
    }

    /// Gives `emit` the root's entries from `offset` on: the name, its attributes, and where the
    /// listing goes on. It returns whether there was no room.
    fn list_root(&self, offset: u64, mut emit: impl FnMut(&OsStr, &fuser::FileAttr, u64) -> bool) {
        for (at, name) in [".", ".."].into_iter().enumerate() {
            let at = at as u64;
            if offset <= at && emit(OsStr::new(name), &root::ATTR, at + 1) {
                return;
            }
        }
        for attached in self.host.table.visible_from(self.kind, root::first_slot(offset)) {
            let slot = attached.slot();
            // One that can't be opened hides no other.
            let Ok(attr) = attached.fs().and_then(|fs| fs.attr(InodeIdx::ROOT)) else { continue };
            let attr = file_attr(slot, &Found { inode: InodeIdx::ROOT, attr });
            if emit(OsStr::new(&slot.to_string()), &attr, root::offset_after(slot)) {
                return;
            }
        }
    }
}

impl Shared {
    pub(crate) fn new(counters: Arc<RequestCounters>) -> Self {
        let (meter, limiter) = Default::default();
        Self { counters, meter, limiter, leaving: AtomicBool::new(false) }
    }

    /// From now on, reads that fail are left to the next server.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

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

/// The answer to a read, which may be given by another thread, or by none.
struct ReadReply {
    reply: Option<ReplyData>,
    shared: Arc<Shared>,
}

impl ReadReply {
    fn answer(mut self, outcome: Result<&[u8], FsError>) {
        match outcome {
            Ok(bytes) => {
                if let Some(reply) = self.reply.take() {
                    reply.data(bytes);
                }
            }
            // A server that is shutting down fails what its successor will get.
            Err(_) if self.shared.leaving.load(Relaxed) => {}
            Err(error) => {
                let errno = self.shared.refuse(&error);
                if let Some(reply) = self.reply.take() {
                    reply.error(errno);
                }
            }
        }
    }
}

impl Drop for ReadReply {
    fn drop(&mut self) {
        // fuser answers with an I/O error what is dropped; what is forgotten stays with the kernel,
        // which sends it to the next server.
        if let Some(reply) = self.reply.take()
            && self.shared.leaving.load(Relaxed)
        {
            std::mem::forget(reply);
        }
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
        // With 0 no file can be passed through, with 2 no overlay fits on top.
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(|| {
            let name = name.as_bytes();
            count(&self.host.shared.counters.lookup);
            // What the root does not have today it may have tomorrow: not to be remembered.
            let in_root = || self.root_entry(name).ok_or(FsError::NoSuchName);
            let found = self.place(parent).and_then(|place| match place {
                Place::Root => {
                    let attached = in_root()?;
                    let attr = attached.fs()?.attr(InodeIdx::ROOT)?;
                    Ok(Some((attached.slot(), Found { inode: InodeIdx::ROOT, attr })))
                }
                Place::In(attached, dir) => {
                    let found = attached.fs()?.lookup(dir, name)?;
                    Ok(found.map(|found| (attached.slot(), found)))
                }
            });
            match found {
                Ok(Some((slot, found))) => {
                    reply.entry(&FOR_EVER, &file_attr(slot, &found), GENERATION);
                }
                Ok(None) => reply.entry(&FOR_EVER, &ABSENT, GENERATION),
                Err(error) => reply.error(self.host.shared.refuse(&error)),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        self.guard(|| self.host.forgotten(self.kind, ino));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.guard(|| {
            let attr = self.at(
                |c| &c.getattr,
                ino,
                || Ok(root::ATTR),
                |fs, slot, inode| Ok(file_attr(slot, &Found { inode, attr: fs.attr(inode)? })),
            );
            match attr {
                Ok(attr) => reply.attr(&FOR_EVER, &attr),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.guard(|| {
            count(&self.host.shared.counters.readlink);
            let answered = match self.place(ino) {
                Ok(Place::Root) => Err(FsError::Invalid("the root is no link")),
                Ok(Place::In(attached, inode)) => {
                    match attached.fs().and_then(|fs| fs.readlink(inode)) {
                        Ok(target) => return reply.data(target),
                        Err(error) => Err(error),
                    }
                }
                Err(error) => Err(error),
            };
            if let Err::<(), _>(error) = answered {
                reply.error(self.host.shared.refuse(&error));
            }
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.guard(|| {
            if !self.kind.tells_opens() {
                count(&self.host.shared.counters.open);
                return reply.error(Errno::ENOSYS);
            }
            let opened = self.at(
                |c| &c.open,
                ino,
                || Err(FsError::Invalid("the root is no file")),
                |fs, _, inode| {
                    if flags.acc_mode() != OpenAccMode::O_RDONLY {
                        return Err(FsError::ReadOnly);
                    }
                    fs.open(inode)?;
                    let Some(content) = fs.content(inode)? else { return Ok(None) };
                    let (kind, unique) = (self.kind, request.unique().0);
                    let opening = Opening { kind, inode: ino.0, content, unique };
                    let opened = self.host.open_large(fs, inode, &opening)?;
                    if matches!(opened.mode, Mode::Passthrough(_)) {
                        fs.source().passed_through(inode);
                    }
                    Ok(Some(opened))
                },
            );
            let plain = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
            match opened {
                // There is nothing to remember for a small file.
                Ok(None) => reply.opened(SMALL_FILE, plain),
                Ok(Some(Opened { handle, mode: Mode::Plain })) => {
                    reply.opened(FileHandle(handle), plain);
                }
                Ok(Some(Opened { handle, mode: Mode::Passthrough(id) })) => {
                    count(&self.host.shared.counters.open_passthrough);
                    // The kernel allows no other flag beside this one.
                    let flags = FopenFlags::FOPEN_NOFLUSH;
                    opened_passthrough(reply, FileHandle(handle), flags, id);
                }
                Err(errno) => reply.error(errno),
            }
        });
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
        self.guard(|| {
            let shared = Arc::clone(&self.host.shared);
            let reply = ReadReply { reply: Some(reply), shared: Arc::clone(&shared) };
            let (attached, inode) = match self.place(ino) {
                Ok(Place::In(attached, inode)) => (attached, inode),
                Ok(Place::Root) => {
                    return reply.answer(Err(FsError::Invalid("the root is no file")));
                }
                Err(error) => return reply.answer(Err(error)),
            };
            let fs = match attached.fs() {
                Ok(fs) => fs,
                Err(error) => return reply.answer(Err(error)),
            };
            fs.read(inode, offset, size, move |answered, outcome| {
                count(match answered {
                    Answered::Now => &shared.counters.read_hit,
                    Answered::Later => &shared.counters.read_miss,
                });
                reply.answer(outcome);
            });
        });
    }

    /// Closing a file that was only read needs no answer: the kernel asks this once.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        count(&self.host.shared.counters.flush);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.guard(|| {
            count(&self.host.shared.counters.release);
            if handle != SMALL_FILE {
                self.host.release(handle.0);
            }
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.guard(|| {
            if !self.kind.tells_opens() {
                count(&self.host.shared.counters.opendir);
                return reply.error(Errno::ENOSYS);
            }
            let opened = self.at(
                |c| &c.opendir,
                ino,
                || Ok(FopenFlags::empty()),
                |fs, _, inode| {
                    fs.open_dir(inode)?;
                    Ok(FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE)
                },
            );
            match opened {
                Ok(flags) => reply.opened(FileHandle(0), flags),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guard(|| {
            count(&self.host.shared.counters.readdir);
            let listed = self.place(ino).and_then(|place| match place {
                Place::Root => {
                    self.list_root(offset, |name, attr, next| {
                        reply.add(attr.ino, next, FileType::Directory, name)
                    });
                    Ok(())
                }
                Place::In(attached, dir) => {
                    let slot = attached.slot();
                    attached.fs()?.read_dir(dir, DirOffset(offset), |item| {
                        let number = inode::number(slot, item.inode);
                        let name = OsStr::from_bytes(item.name);
                        Ok(taken(reply.add(number, item.next.0, file_type(item.kind), name)))
                    })
                }
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(self.host.shared.refuse(&error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guard(|| {
            count(&self.host.shared.counters.readdirplus);
            let listed = self.place(ino).and_then(|place| match place {
                Place::Root => {
                    self.list_root(offset, |name, attr, next| {
                        reply.add(attr.ino, next, name, &FOR_EVER, attr, GENERATION)
                    });
                    Ok(())
                }
                Place::In(attached, dir) => {
                    let (fs, slot) = (attached.fs()?, attached.slot());
                    fs.read_dir(dir, DirOffset(offset), |item| {
                        let attr = file_attr(slot, &fs.dir_item_attr(dir, item)?);
                        let (next, name) = (item.next.0, OsStr::from_bytes(item.name));
                        Ok(taken(reply.add(attr.ino, next, name, &FOR_EVER, &attr, GENERATION)))
                    })
                }
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(self.host.shared.refuse(&error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        count(&self.host.shared.counters.releasedir);
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.guard(|| {
            let stat = self.at(
                |c| &c.statfs,
                ino,
                || Ok(SnapshotFs::statfs_of_nothing()),
                |fs, _, _| Ok(fs.statfs()),
            );
            match stat {
                Ok(s) => {
                    let (files, name) = (s.files, s.name_len_max);
                    reply.statfs(s.blocks, 0, 0, files, 0, s.block_size, name, s.block_size);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.guard(|| {
            count(&self.host.shared.counters.getxattr);
            if !self.kind.has_xattrs() {
                return reply.error(Errno::ENOSYS);
            }
            match self.place(ino) {
                Ok(Place::Root) => reply.error(Errno::ENODATA),
                Ok(Place::In(attached, inode)) => {
                    let fs = attached.fs();
                    let answer = fs.and_then(|fs| fs.xattr(inode, name.as_bytes(), size));
                    xattr_reply(answer.map_err(|e| self.host.shared.refuse(&e)), reply);
                }
                Err(error) => reply.error(self.host.shared.refuse(&error)),
            }
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.guard(|| {
            count(&self.host.shared.counters.listxattr);
            if !self.kind.has_xattrs() {
                return reply.error(Errno::ENOSYS);
            }
            match self.place(ino) {
                Ok(Place::Root) if size == 0 => reply.size(0),
                Ok(Place::Root) => reply.data(&[]),
                Ok(Place::In(attached, inode)) => {
                    let answer = attached.fs().and_then(|fs| {
                        let viewer = viewer(fs, request.uid(), request.pid());
                        fs.xattr_names(inode, viewer, size)
                    });
                    xattr_reply(answer.map_err(|e| self.host.shared.refuse(&e)), reply);
                }
                Err(error) => reply.error(self.host.shared.refuse(&error)),
            }
        });
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
        count(&self.host.shared.counters.ioctl);
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
        self.guard(|| {
            let place = self.at(
                |c| &c.lseek,
                ino,
                || Err(FsError::Invalid("the root is no file")),
                |fs, _, inode| {
                    let seek = match whence {
                        libc::SEEK_DATA => Seek::Data,
                        libc::SEEK_HOLE => Seek::Hole,
                        _ => return Err(FsError::Invalid("a seek that the kernel does itself")),
                    };
                    let offset = u64::try_from(offset).map_err(|_| FsError::NothingAfter)?;
                    // In range: no file is longer than `i64::MAX`.
                    Ok(i64::try_from(fs.seek(inode, offset, seek)?).unwrap_or(i64::MAX))
                },
            );
            match place {
                Ok(offset) => reply.offset(offset),
                Err(errno) => reply.error(errno),
            }
        });
    }
}
