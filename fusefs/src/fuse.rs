//! Adapts the FUSE protocol to [`SnapshotFs`]: finds the snapshot of a request and translates;
//! makes no decisions.
//!
//! The kernel caches every reply practically forever, because snapshots never change: entries,
//! negative entries, attributes, links, listings and pages. It checks permissions itself, including
//! ACLs.

mod attr;
mod entry;
mod read_reply;
mod refused;
mod root;
mod shared;

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use attr::{ABSENT, NO_FLAGS, file_attr, file_type, flags_len, taken, xattr_reply};
use entry::{Introduced, Listing, room_of};
use fuser::{
    Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use inlay_store::format::InodeIdx;
use read_reply::ReadReply;
use refused::Refused;

use crate::counters::{RequestCounters, count};
use crate::error::FsError;
use crate::features::FuseFeature;
use crate::fs::{Answered, DirOffset, Found, READ_LEN_MAX, Seek, SnapshotFs};
use crate::host::{Attached, Host};
use crate::inflight::{Recorded, Unique, answered_by_thread};
use crate::inode;
use crate::kind::ConnectionKind;
use crate::ledger::Mode;
use crate::opens::{Opened, Opening, RESENT};
use crate::raw::opened_passthrough;
use crate::viewer::viewer;
pub(crate) use shared::Shared;

/// 35,000 years. The kernel adds it to its clock in ticks, so the maximum `Duration` would
/// overflow.
const FOR_EVER: Duration = Duration::from_secs(1 << 40);

/// Maximum number of background requests (mostly read-ahead) that the kernel has in flight.
/// Together with one request per thread blocked in a syscall or page fault, this bounds the reads
/// that wait for the content source.
const MAX_BACKGROUND: u16 = 256;

/// Node IDs are never reused during a connection.
const GENERATION: Generation = Generation(0);

/// File handle of every open file that is not large.
const SMALL_FILE: FileHandle = FileHandle(0);

/// INIT flags requested where the kernel offers them.
const WANTED: [InitFlags; 5] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_DIO,
];

/// INIT flags requested unless disabled.
const OPTIONAL: [(FuseFeature, InitFlags); 2] = [
    (FuseFeature::Passthrough, InitFlags::FUSE_PASSTHROUGH),
    // The kernel checks permissions here (`default_permissions`), so views may map owners.
    (FuseFeature::IdmappedMounts, InitFlags::FUSE_ALLOW_IDMAP),
];

/// One FUSE connection: the slots of one kind.
#[derive(Debug)]
pub(crate) struct Adapter {
    host: Arc<Host>,
    kind: ConnectionKind,
    origin: Origin,
}

/// Origin of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The kernel.
    Kernel,
    /// Records of requests in flight, replayed on kernels that do not resend.
    Records,
}

/// What a node ID refers to.
enum InodeTarget {
    /// The directory of the slots.
    Root,
    /// An inode of a snapshot.
    In(Arc<Attached>, InodeIdx),
}

impl Adapter {
    pub(crate) fn new(host: Arc<Host>, kind: ConnectionKind, origin: Origin) -> Self {
        Self { host, kind, origin }
    }

    fn place(&self, ino: INodeNo) -> Result<InodeTarget, FsError> {
        let (slot, inode) = inode::inode(ino)?;
        match self.host.table.get(slot) {
            Some(attached) if attached.kind() == self.kind => Ok(InodeTarget::In(attached, inode)),
            None if ino == INodeNo::ROOT => Ok(InodeTarget::Root),
            _ => Err(FsError::UnknownInode(ino.0)),
        }
    }

    /// Counts a request and dispatches it to the root or a snapshot.
    fn at<T>(
        &self,
        counter: impl Fn(&RequestCounters) -> &AtomicU64,
        ino: INodeNo,
        in_root: impl FnOnce() -> Result<T, FsError>,
        in_snapshot: impl FnOnce(&SnapshotFs, &Attached, InodeIdx) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        count(counter(&self.host.shared.counters));
        self.place(ino).and_then(|place| match place {
            InodeTarget::Root => in_root(),
            InodeTarget::In(attached, inode) => {
                in_snapshot(self.host.ready(&attached)?, &attached, inode)
            }
        })
    }

    /// Replies with an error, or leaves the request unanswered until its snapshot is open.
    fn refuse(&self, request: &Request, reply: impl Refused, error: &FsError) {
        match error {
            // Dropping `reply` would send an I/O error.
            FsError::NotYet if self.leave(request) => std::mem::forget(reply),
            error => reply.refused(self.host.shared.refuse(error)),
        }
    }

    /// Leaves a request unanswered, to come again. Returns false if it cannot be recorded.
    fn leave(&self, request: &Request) -> bool {
        let Some(in_flight) = self.host.shared.in_flight() else { return true };
        match in_flight.leave(self.kind, Unique(request.unique().0)) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "can't replay a request; it fails with EIO");
                false
            }
        }
    }

    /// Marks a replayed request as answered, after a reply that bypassed fuser.
    fn answered(&self, request: &Request) {
        if self.origin == Origin::Records
            && let Some(in_flight) = self.host.shared.in_flight()
        {
            in_flight.answered(self.kind, Unique(request.unique().0), None);
        }
    }

    fn begin_read(&self, ino: INodeNo, offset: u64, size: u32, reply: ReadReply) {
        let (attached, inode) = match self.place(ino) {
            Ok(InodeTarget::In(attached, inode)) => (attached, inode),
            Ok(InodeTarget::Root) => {
                return reply.answer(Err(FsError::Invalid("the root is no file")));
            }
            Err(error) => return reply.answer(Err(error)),
        };
        let fs = match self.host.ready(&attached) {
            Ok(fs) => fs,
            Err(error) => return reply.answer(Err(error)),
        };
        let shared = Arc::clone(&self.host.shared);
        fs.read(inode, offset, size, move |answered, outcome| {
            count(match answered {
                Answered::Now => &shared.counters.read_hit,
                Answered::Later => &shared.counters.read_miss,
            });
            reply.answer(outcome);
        });
    }

    /// Returns the device of this connection.
    fn device(&self) -> Option<BorrowedFd<'_>> {
        self.host.device(self.kind)
    }

    /// Runs a request handler. A panic is a bug; it must fail one request, not kill the thread.
    fn guard(&self, request: &Request, answer: impl FnOnce()) {
        let _timed = self.host.shared.meter.request();
        if catch_unwind(AssertUnwindSafe(answer)).is_err() {
            count(&self.host.shared.counters.failed);
            tracing::error!("a request panicked; it fails with EIO");
        }
        // A request that is still unanswered has a record of its own by now.
        let recorded = answered_by_thread(Unique(request.unique().0));
        if recorded == Recorded::No
            && self.origin == Origin::Kernel
            && self.host.shared.in_flight().is_some()
        {
            tracing::error!(
                "a request was not read into shared memory: it would not outlive this process"
            );
        }
    }

    fn root_entry(&self, name: &[u8]) -> Option<Arc<Attached>> {
        let attached = self.host.table.get(root::slot(name)?)?;
        (attached.kind() == self.kind && attached.is_visible()).then_some(attached)
    }

    /// Passes the root's entries from `offset` on to `emit`: the name, its attributes, and the next
    /// offset. `emit` returns whether the buffer is full.
    fn list_root(&self, offset: u64, mut emit: impl FnMut(&OsStr, &Introduced<'_>, u64) -> bool) {
        for (at, name) in [".", ".."].into_iter().enumerate() {
            let (at, root) = (at as u64, Introduced { node: INodeNo::ROOT, attr: &root::ATTR });
            if offset <= at && emit(OsStr::new(name), &root, at + 1) {
                return;
            }
        }
        for attached in self.host.table.visible_from(self.kind, root::first_slot(offset)) {
            let slot = attached.slot();
            let number = INodeNo(attached.numbers().of(slot, InodeIdx::ROOT));
            let found = self.host.ready(&attached).and_then(|fs| {
                let attr = fs.attr(InodeIdx::ROOT)?;
                Ok(file_attr(&attached, fs, &Found { inode: InodeIdx::ROOT, attr }))
            });
            let (node, attr) = match found {
                Ok(attr) => (inode::number(slot, InodeIdx::ROOT), attr),
                // Name only: the kernel looks it up when a program needs its attributes.
                Err(_) => (INodeNo(0), fuser::FileAttr { ino: number, ..root::ATTR }),
            };
            let introduced = Introduced { node, attr: &attr };
            if emit(OsStr::new(&slot.to_string()), &introduced, root::offset_after(slot)) {
                return;
            }
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it, the kernel would ignore ACLs that deny access.
        config.add_capabilities(InitFlags::FUSE_POSIX_ACL).map_err(|_| {
            io::Error::new(io::ErrorKind::Unsupported, "this kernel's FUSE can't enforce ACLs")
        })?;
        let optional = OPTIONAL.into_iter().filter(|(feature, _)| self.host.uses(*feature));
        for wanted in WANTED.into_iter().chain(optional.map(|(_, flag)| flag)) {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!(?wanted, "the kernel lacks a feature; expect more requests");
            }
        }
        // This also sets the read size. None of these calls fails: all values are in range.
        let _ = config.set_max_write(READ_LEN_MAX);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        // With 0, no file can be passed through; with 2, no overlay fits on top.
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(request, || {
            let name = name.as_bytes();
            count(&self.host.shared.counters.lookup);
            // A name that the root lacks today may exist tomorrow: must not be cached.
            let in_root = || self.root_entry(name).ok_or(FsError::NoSuchName);
            let found = self.place(parent).and_then(|place| {
                let (attached, found) = match place {
                    InodeTarget::Root => {
                        let attached = in_root()?;
                        let attr = self.host.ready(&attached)?.attr(InodeIdx::ROOT)?;
                        (attached, Some(Found { inode: InodeIdx::ROOT, attr }))
                    }
                    InodeTarget::In(attached, dir) => {
                        let found = self.host.ready(&attached)?.lookup(dir, name)?;
                        (attached, found)
                    }
                };
                let Some(found) = found else { return Ok((INodeNo(0), ABSENT)) };
                let node = inode::number(attached.slot(), found.inode);
                Ok((node, file_attr(&attached, self.host.ready(&attached)?, &found)))
            });
            match (found, self.device()) {
                (Ok((node, attr)), Some(device)) => {
                    entry::entry(device, request, reply, &Introduced { node, attr: &attr });
                    self.answered(request);
                }
                (Ok(_), None) => reply.error(Errno::ENODEV),
                (Err(error), _) => self.refuse(request, reply, &error),
            }
        });
    }

    fn forget(&self, request: &Request, ino: INodeNo, _: u64) {
        self.guard(request, || self.host.forgotten(self.kind, ino));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.guard(request, || {
            let attr = self.at(
                |c| &c.getattr,
                ino,
                || Ok(root::ATTR),
                |fs, attached, inode| {
                    Ok(file_attr(attached, fs, &Found { inode, attr: fs.attr(inode)? }))
                },
            );
            match attr {
                Ok(attr) => reply.attr(&FOR_EVER, &attr),
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.guard(request, || {
            count(&self.host.shared.counters.readlink);
            let answered = match self.place(ino) {
                Ok(InodeTarget::Root) => Err(FsError::Invalid("the root is no link")),
                Ok(InodeTarget::In(attached, inode)) => {
                    match self.host.ready(&attached).and_then(|fs| fs.readlink(inode)) {
                        Ok(target) => return reply.data(target),
                        Err(error) => Err(error),
                    }
                }
                Err(error) => Err(error),
            };
            if let Err::<(), _>(error) = answered {
                self.refuse(request, reply, &error);
            }
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.guard(request, || {
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
                    let kind = self.kind;
                    let unique = match self.origin {
                        Origin::Kernel => request.unique().0,
                        Origin::Records => request.unique().0 | RESENT,
                    };
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
                // Small files need no record.
                Ok(None) => reply.opened(SMALL_FILE, plain),
                Ok(Some(Opened { handle, mode: Mode::Plain })) => {
                    reply.opened(FileHandle(handle), plain);
                }
                Ok(Some(Opened { handle, mode: Mode::Passthrough(id) })) => {
                    count(&self.host.shared.counters.open_passthrough);
                    // The kernel allows no other flag with passthrough.
                    let flags = FopenFlags::FOPEN_NOFLUSH;
                    opened_passthrough(reply, FileHandle(handle), flags, id);
                }
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guard(request, || {
            let reply = self.read_reply(request, reply);
            let pending = reply.pending();
            self.begin_read(ino, offset, size, reply);
            self.keep_unanswered(request, &pending);
        });
    }

    /// Closing a read-only file needs no reply: after ENOSYS, the kernel never sends FLUSH again.
    fn flush(&self, request: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.guard(request, || {
            count(&self.host.shared.counters.flush);
            reply.error(Errno::ENOSYS);
        });
    }

    fn release(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.guard(request, || {
            count(&self.host.shared.counters.release);
            if handle != SMALL_FILE {
                self.host.release(handle.0);
            }
            reply.ok();
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.guard(request, || {
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
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guard(request, || {
            count(&self.host.shared.counters.readdir);
            let listed = self.place(ino).and_then(|place| match place {
                InodeTarget::Root => {
                    self.list_root(offset, |name, introduced, next| {
                        reply.add(introduced.attr.ino, next, FileType::Directory, name)
                    });
                    Ok(())
                }
                InodeTarget::In(attached, dir) => {
                    let (slot, numbers) = (attached.slot(), attached.numbers());
                    self.host.ready(&attached)?.read_dir(dir, DirOffset(offset), |item| {
                        let number = INodeNo(numbers.of(slot, item.inode));
                        let name = OsStr::from_bytes(item.name);
                        Ok(taken(reply.add(number, item.next.0, file_type(item.kind), name)))
                    })
                }
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.guard(request, || {
            count(&self.host.shared.counters.readdirplus);
            let mut listing = Listing::new(|| room_of(&reply));
            let listed = self.place(ino).and_then(|place| match place {
                InodeTarget::Root => {
                    self.list_root(offset, |name, introduced, next| {
                        listing.add(introduced, next, name.as_bytes())
                    });
                    Ok(())
                }
                InodeTarget::In(attached, dir) => {
                    let fs = self.host.ready(&attached)?;
                    fs.read_dir(dir, DirOffset(offset), |item| {
                        let found = fs.dir_item_attr(dir, item)?;
                        let node = inode::number(attached.slot(), found.inode);
                        let attr = file_attr(&attached, fs, &found);
                        let introduced = Introduced { node, attr: &attr };
                        Ok(taken(listing.add(&introduced, item.next.0, item.name)))
                    })
                }
            });
            match (listed, self.device()) {
                (Ok(()), Some(device)) => {
                    let bytes = listing.into_bytes();
                    entry::listing(device, request, reply, &bytes);
                    self.answered(request);
                }
                (Ok(()), None) => reply.error(Errno::ENODEV),
                (Err(error), _) => self.refuse(request, reply, &error),
            }
        });
    }

    fn releasedir(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.guard(request, || {
            count(&self.host.shared.counters.releasedir);
            reply.ok();
        });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.guard(request, || {
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
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.guard(request, || {
            count(&self.host.shared.counters.getxattr);
            if !self.kind.has_xattrs() {
                return reply.error(Errno::ENODATA);
            }
            match self.place(ino) {
                Ok(InodeTarget::Root) => reply.error(Errno::ENODATA),
                Ok(InodeTarget::In(attached, inode)) => {
                    let fs = self.host.ready(&attached);
                    match fs.and_then(|fs| fs.xattr(inode, name.as_bytes(), size)) {
                        Ok(answer) => xattr_reply(answer, reply),
                        Err(error) => self.refuse(request, reply, &error),
                    }
                }
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.guard(request, || {
            count(&self.host.shared.counters.listxattr);
            if !self.kind.has_xattrs() {
                return if size == 0 { reply.size(0) } else { reply.data(&[]) };
            }
            match self.place(ino) {
                Ok(InodeTarget::Root) if size == 0 => reply.size(0),
                Ok(InodeTarget::Root) => reply.data(&[]),
                Ok(InodeTarget::In(attached, inode)) => {
                    let answer = self.host.ready(&attached).and_then(|fs| {
                        let viewer = viewer(fs, request.uid(), request.pid());
                        fs.xattr_names(inode, viewer, size)
                    });
                    match answer {
                        Ok(answer) => xattr_reply(answer, reply),
                        Err(error) => self.refuse(request, reply, &error),
                    }
                }
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }

    /// Inode flags can be read and are all clear: overlayfs, lsattr and cp query them. Other ioctls
    /// are not supported.
    fn ioctl(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        control: u32,
        _: &[u8],
        room: u32,
        reply: ReplyIoctl,
    ) {
        self.guard(request, || {
            count(&self.host.shared.counters.ioctl);
            match flags_len(control) {
                Some(len) if len <= room as usize => {
                    reply.ioctl(0, NO_FLAGS.get(..len).unwrap_or_default());
                }
                _ => reply.error(Errno::ENOTTY),
            }
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.guard(request, || {
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
                Err(error) => self.refuse(request, reply, &error),
            }
        });
    }
}
