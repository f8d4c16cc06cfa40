//! Walks the directories that an export has created with one open descriptor, at any depth.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Position of the walk.
#[derive(Debug)]
pub(super) struct Cursor {
    dir: OwnedFd,
    /// Device and inode of the ancestors, to verify `..` on the way back.
    above: Vec<(u64, u64)>,
}

impl Cursor {
    pub(super) fn new(root: &File) -> Result<Self, Errno> {
        Ok(Self { dir: open(root.as_fd(), OsStr::new("."))?, above: Vec::new() })
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Creates a directory with mode 0700.
    pub(super) fn make(&self, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::mkdirat(&self.dir, name, Mode::RWXU)
    }

    pub(super) fn enter(&mut self, name: &OsStr) -> Result<(), Errno> {
        let below = open(self.dir.as_fd(), name)?;
        self.above.push(identity(&self.dir)?);
        self.dir = below;
        Ok(())
    }

    /// Ascends to the parent and returns the directory just left. Fails with `STALE` if it was
    /// moved meanwhile.
    pub(super) fn leave(&mut self) -> Result<OwnedFd, Errno> {
        let above = open(self.dir.as_fd(), OsStr::new(".."))?;
        if self.above.pop() != Some(identity(&above)?) {
            return Err(Errno::STALE);
        }
        Ok(std::mem::replace(&mut self.dir, above))
    }
}

/// Opens the directory at the path `names` below `root` without following symbolic links.
pub(super) fn descend(root: &File, names: &[&[u8]]) -> Result<OwnedFd, Errno> {
    let mut dir = open(root.as_fd(), OsStr::new("."))?;
    for name in names {
        dir = open(dir.as_fd(), OsStr::from_bytes(name))?;
    }
    Ok(dir)
}

fn open(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn identity(dir: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}
