//! One object of a directory, opened: what it is, its metadata, its extended attributes.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use inlay_store::format::{Device, FileKind, Timestamp};
use inlay_store::tree::{Meta, NodeKind, Xattr};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, fgetxattr, flistxattr, getxattr, listxattr,
    openat, readlinkat, statx,
};
use rustix::io::Errno;

/// The largest list of names, and the largest value, that Linux gives.
const XATTR_BUFFER: usize = 64 << 10;

/// What failed, and how.
#[derive(Debug, Clone, Copy)]
pub(super) enum Failure {
    System(&'static str, Errno),
    /// It is not what it was a moment ago.
    Changed(&'static str),
}

/// Names the step that an error comes from.
pub(super) fn step(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |error| match error {
        Errno::NOENT => Failure::Changed("was removed"),
        error => Failure::System(what, error),
    }
}

/// Which mount an object is on; by the device if the kernel is too old to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountId {
    Mount(u64),
    Device(u32, u32),
}

/// Tells inodes of this machine apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct InodeId {
    device: (u32, u32),
    inode: u64,
}

/// An object, opened.
pub(super) struct Object {
    pub(super) fd: OwnedFd,
    pub(super) kind: FileKind,
    stat: Statx,
    access: Access,
}

/// What the descriptor can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// It only stands for the object: opening a device or a pipe would do something.
    PathOnly,
}

impl Object {
    /// Opens `name` in `dir`, which the listing says is a `listed`.
    pub(super) fn open(dir: impl AsFd, name: &CStr, listed: FileType) -> Result<Self, Failure> {
        let listed = match listed {
            FileType::Unknown => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let stat = statx(&dir, name, flags, StatxFlags::TYPE).map_err(step("stat"))?;
                FileType::from_raw_mode(stat.stx_mode.into())
            }
            known => known,
        };
        let (flags, access) = match listed {
            FileType::Directory => (OFlags::RDONLY | OFlags::DIRECTORY, Access::Read),
            // Should it be a pipe by now, opening it must not wait.
            FileType::RegularFile => (OFlags::RDONLY | OFlags::NONBLOCK, Access::Read),
            _ => (OFlags::PATH, Access::PathOnly),
        };
        let fd = match open(&dir, name, flags | OFlags::NOFOLLOW, access) {
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(Failure::Changed("was replaced by something else"));
            }
            other => other.map_err(step("open"))?,
        };
        let object = Self::of(fd, access)?;
        if object.kind.code() == FileKind::from_mode(listed.as_raw_mode()).map_or(0, FileKind::code)
        {
            Ok(object)
        } else {
            Err(Failure::Changed("was replaced by something else"))
        }
    }

    /// Opens the directory above `dir`.
    pub(super) fn open_parent(dir: impl AsFd) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = open(&dir, c"..", flags, Access::Read).map_err(step("open"))?;
        Self::of(fd, Access::Read)
    }

    /// Looks at what `fd`, a directory, is.
    pub(super) fn of_dir(fd: OwnedFd) -> Result<Self, Failure> {
        Self::of(fd, Access::Read)
    }

    fn of(fd: OwnedFd, access: Access) -> Result<Self, Failure> {
        let stat = stat(&fd)?;
        let kind = FileKind::from_mode(stat.stx_mode.into())
            .ok_or(Failure::Changed("is of a type that is not known"))?;
        Ok(Self { fd, kind, stat, access })
    }

    pub(super) fn size(&self) -> u64 {
        self.stat.stx_size
    }

    pub(super) fn names(&self) -> u32 {
        self.stat.stx_nlink
    }

    /// Whether it has fewer blocks than its size needs.
    pub(super) fn may_have_holes(&self) -> bool {
        self.stat.stx_blocks.saturating_mul(512) < self.stat.stx_size
    }

    /// Its size now.
    pub(super) fn size_now(&self) -> Result<u64, Failure> {
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

    /// What it is, if that needs nothing to be read but a link's target.
    pub(super) fn node_kind(&self) -> Result<Option<NodeKind>, Failure> {
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

    /// Its metadata; `buffers` are for its attributes.
    pub(super) fn meta(&self, buffers: &mut XattrBuffers) -> Result<Meta, Failure> {
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

fn stat(fd: &OwnedFd) -> Result<Statx, Failure> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    statx(fd, c"", AtFlags::EMPTY_PATH, wanted).map_err(step("stat"))
}

/// Without leaving a trace in access times, where the system allows that.
fn open(dir: impl AsFd, name: &CStr, flags: OFlags, access: Access) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    if access == Access::Read {
        match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
            // Only the owner may ask for that.
            Err(Errno::PERM) => {}
            other => return other,
        }
    }
    openat(&dir, name, flags, Mode::empty())
}

/// Room for extended attributes, used for one object after another.
pub(super) struct XattrBuffers {
    names: Box<[u8]>,
    value: Box<[u8]>,
}

impl XattrBuffers {
    pub(super) fn new() -> Self {
        Self { names: vec![0; XATTR_BUFFER].into(), value: vec![0; XATTR_BUFFER].into() }
    }

    fn read(&mut self, object: &Object) -> Result<Vec<Xattr>, Failure> {
        // The kernel takes attributes only from a file that is open, or by a path. This path is
        // the descriptor's, and leads nowhere else, even if the object is a symbolic link.
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
                return Err(Failure::System("read attributes through /proc", Errno::NOENT));
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
                // Taken away since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(Failure::System("read attribute", error)),
            }
        }
        Ok(xattrs)
    }
}
