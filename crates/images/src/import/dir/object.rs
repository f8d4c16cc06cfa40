//! Opens one object of a directory and reads its type, metadata and extended attributes.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use inlay_base::held::Held;
use inlay_store::format::{Device, FileKind, Timestamp};
use inlay_store::tree::{Meta, NodeKind, Xattr};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, fgetxattr, flistxattr, getxattr, listxattr,
    openat, readlinkat, statx,
};
use rustix::io::Errno;

/// Linux's limit for a list of attribute names, and for a value.
const XATTR_BUFFER: usize = 64 << 10;

/// Cause of a failure.
#[derive(Debug, Clone, Copy)]
pub(super) enum ObjectFailure {
    System(&'static str, Errno),
    /// The object changed during the import.
    Changed(&'static str),
}

/// Returns a closure that adds the failed operation to an errno; a vanished object counts as
/// changed.
pub(super) fn step(what: &'static str) -> impl Fn(Errno) -> ObjectFailure {
    move |error| match error {
        Errno::NOENT => ObjectFailure::Changed("was removed"),
        error => ObjectFailure::System(what, error),
    }
}

/// Mount that an object is on; identified by the device on kernels that do not report mount ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountId {
    Mount(u64),
    Device(u32, u32),
}

/// Identity of an inode on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct InodeId {
    device: (u32, u32),
    inode: u64,
}

/// An open object.
pub(super) struct OpenObject {
    pub(super) fd: OwnedFd,
    pub(super) kind: FileKind,
    stat: Statx,
    access: Access,
}

/// Capability of the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// `O_PATH`: opening a device or FIFO would have side effects.
    PathOnly,
}

impl OpenObject {
    /// Opens `name` in `dir`, of type `listed` according to the directory listing.
    pub(super) fn open(
        dir: impl AsFd,
        name: &CStr,
        listed: FileType,
    ) -> Result<Self, ObjectFailure> {
        let listed = match listed {
            FileType::Unknown => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let stat = statx(&dir, name, flags, StatxFlags::TYPE).map_err(step("stat"))?;
                FileType::from_raw_mode(stat.stx_mode.into())
            }
            known => known,
        };
        if listed == FileType::RegularFile {
            // If it has become a FIFO or a device by now, it must not be opened.
            let held = Held::at(&dir, name).map_err(step("open"))?;
            let file = held.open_file_quietly().map_err(step("open"))?;
            let file = file.ok_or(ObjectFailure::Changed("was replaced by something else"))?;
            return Self::of(file, Access::Read);
        }
        let (flags, access) = match listed {
            FileType::Directory => (OFlags::RDONLY | OFlags::DIRECTORY, Access::Read),
            _ => (OFlags::PATH, Access::PathOnly),
        };
        let fd = match open(&dir, name, flags | OFlags::NOFOLLOW, access) {
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(ObjectFailure::Changed("was replaced by something else"));
            }
            other => other.map_err(step("open"))?,
        };
        let object = Self::of(fd, access)?;
        if object.kind.code() == FileKind::from_mode(listed.as_raw_mode()).map_or(0, FileKind::code)
        {
            Ok(object)
        } else {
            Err(ObjectFailure::Changed("was replaced by something else"))
        }
    }

    /// Opens the parent of `dir`.
    pub(super) fn open_parent(dir: impl AsFd) -> Result<Self, ObjectFailure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = open(&dir, c"..", flags, Access::Read).map_err(step("open"))?;
        Self::of(fd, Access::Read)
    }

    /// Wraps `fd`, an open directory.
    pub(super) fn of_dir(fd: OwnedFd) -> Result<Self, ObjectFailure> {
        Self::of(fd, Access::Read)
    }

    fn of(fd: OwnedFd, access: Access) -> Result<Self, ObjectFailure> {
        let stat = stat(&fd)?;
        let kind = FileKind::from_mode(stat.stx_mode.into())
            .ok_or(ObjectFailure::Changed("is of a type that is not known"))?;
        Ok(Self { fd, kind, stat, access })
    }

    pub(super) fn size(&self) -> u64 {
        self.stat.stx_size
    }

    pub(super) fn names(&self) -> u32 {
        self.stat.stx_nlink
    }

    /// Returns the current size.
    pub(super) fn size_now(&self) -> Result<u64, ObjectFailure> {
        Ok(stat(&self.fd)?.stx_size)
    }

    pub(super) fn id(&self) -> InodeId {
        let device = (self.stat.stx_dev_major, self.stat.stx_dev_minor);
        InodeId { device, inode: self.stat.stx_ino }
    }

    pub(super) fn mount(&self) -> MountId {
        if self.stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            MountId::Device(self.stat.stx_dev_major, self.stat.stx_dev_minor)
        } else {
            MountId::Mount(self.stat.stx_mnt_id)
        }
    }

    /// Returns the kind of node; `None` for a regular file, which needs its contents read.
    pub(super) fn node_kind(&self) -> Result<Option<NodeKind>, ObjectFailure> {
        let device = Device { major: self.stat.stx_rdev_major, minor: self.stat.stx_rdev_minor };
        Ok(Some(match self.kind {
            FileKind::Regular => return Ok(None),
            FileKind::Directory => NodeKind::Directory,
            FileKind::Symlink => {
                let target = readlinkat(&self.fd, c"", Vec::new()).map_err(step("read link"))?;
                NodeKind::Symlink(target.into_bytes().into())
            }
            FileKind::CharDevice => NodeKind::CharDevice(device),
            FileKind::BlockDevice => NodeKind::BlockDevice(device),
            FileKind::Fifo => NodeKind::Fifo,
            FileKind::Socket => NodeKind::Socket,
        }))
    }

    /// Reads the metadata, using `buffers` for extended attributes.
    pub(super) fn meta(&self, buffers: &mut XattrBuffers) -> Result<Meta, ObjectFailure> {
        Ok(Meta {
            perm: self.stat.stx_mode & 0o7777,
            uid: self.stat.stx_uid,
            gid: self.stat.stx_gid,
            mtime: Timestamp {
                secs: self.stat.stx_mtime.tv_sec,
                nanos: self.stat.stx_mtime.tv_nsec,
            },
            xattrs: buffers.read(self)?,
        })
    }
}

fn stat(fd: &OwnedFd) -> Result<Statx, ObjectFailure> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    statx(fd, c"", AtFlags::EMPTY_PATH, wanted).map_err(step("stat"))
}

/// Opens without updating access times where permitted.
fn open(dir: impl AsFd, name: &CStr, flags: OFlags, access: Access) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    if access == Access::Read {
        match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
            // `O_NOATIME` requires ownership.
            Err(Errno::PERM) => {}
            other => return other,
        }
    }
    openat(&dir, name, flags, Mode::empty())
}

/// Buffers for extended attributes, reused across objects.
pub(super) struct XattrBuffers {
    names: Box<[u8]>,
    value: Box<[u8]>,
}

impl XattrBuffers {
    pub(super) fn new() -> Self {
        Self { names: vec![0; XATTR_BUFFER].into(), value: vec![0; XATTR_BUFFER].into() }
    }

    fn read(&mut self, object: &OpenObject) -> Result<Vec<Xattr>, ObjectFailure> {
        // The attribute syscalls accept no `O_PATH` descriptor, only an open file or a path. The
        // `/proc` path of the descriptor leads to exactly this object, even if it is a symbolic
        // link.
        let path = match object.access {
            Access::Read => None,
            Access::PathOnly => Some(format!("/proc/self/fd/{}", object.fd.as_raw_fd())),
        };
        let listed = match &path {
            None => flistxattr(&object.fd, &mut *self.names),
            Some(path) => listxattr(path, &mut *self.names),
        };
        let len = match listed {
            Err(Errno::OPNOTSUPP) => 0,
            Err(Errno::NOENT) if path.is_some() => {
                return Err(ObjectFailure::System("read attributes through /proc", Errno::NOENT));
            }
            other => other.map_err(step("list attributes"))?,
        };
        let mut xattrs = Vec::new();
        let names = self.names.get(..len).unwrap_or(&[]);
        for name in names.split_inclusive(|&b| b == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let read = match &path {
                None => fgetxattr(&object.fd, name, &mut *self.value),
                Some(path) => getxattr(path, name, &mut *self.value),
            };
            match read {
                Ok(len) => {
                    let value = self.value.get(..len).unwrap_or(&[]);
                    xattrs.push((name.to_bytes().into(), value.into()));
                }
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(ObjectFailure::System("read attribute", error)),
            }
        }
        Ok(xattrs)
    }
}
