//! Inspects a file before opening it.
//!
//! Opening a device, FIFO or socket has side effects, and the program that owns a directory can
//! replace a name by one of these at any time. So the object is held by an `O_PATH` descriptor,
//! inspected, and opened through that descriptor only if it is a regular file.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

/// An object of any type, held by an `O_PATH` descriptor without being open.
#[derive(Debug)]
pub struct Held {
    fd: OwnedFd,
    stat: Stat,
}

impl Held {
    /// Holds `name` in `dir` without following a symbolic link.
    ///
    /// # Errors
    ///
    /// If `name` does not exist or cannot be reached.
    pub fn at(dir: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::of(openat(dir, name, flags, Mode::empty())?)
    }

    /// Wraps `fd`, opened with `O_PATH`.
    ///
    /// # Errors
    ///
    /// If `fstat` fails.
    pub fn of(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(&fd)?;
        Ok(Self { fd, stat })
    }

    /// Type of the object.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Result of `fstat` at construction.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Returns a path to the object that survives renames, for calls that take no descriptor.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// Opens the object for reading; `None` if it is not a regular file. Non-blocking, since reads
    /// of some files in `/proc` block.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn open_file(&self) -> Result<Option<OwnedFd>, Errno> {
        self.open(OFlags::RDONLY)
    }

    /// Opens for reading like [`Held::open_file`], without updating the access time where
    /// permitted.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn open_file_quietly(&self) -> Result<Option<OwnedFd>, Errno> {
        match self.open(OFlags::RDONLY | OFlags::NOATIME) {
            // `O_NOATIME` requires ownership.
            Err(Errno::PERM) => self.open_file(),
            other => other,
        }
    }

    /// Opens and truncates the object; `None` if it is not a regular file.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn open_to_replace(&self) -> Result<Option<OwnedFd>, Errno> {
        self.open(OFlags::WRONLY | OFlags::TRUNC)
    }

    fn open(&self, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        if self.kind() != FileType::RegularFile {
            return Ok(None);
        }
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        openat(CWD, self.path(), flags, Mode::empty()).map(Some)
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "bytes").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let open = File::open(dir.path()).unwrap();
        let held = |name| Held::at(&open, name).unwrap();
        for (name, kind) in [
            (c"link", FileType::Symlink),
            (c"dir", FileType::Directory),
            (c"fifo", FileType::Fifo),
            (c"socket", FileType::Socket),
        ] {
            assert_eq!(held(name).kind(), kind);
            assert!(held(name).open_file().unwrap().is_none(), "{kind:?}");
            assert!(held(name).open_to_replace().unwrap().is_none(), "{kind:?}");
        }
        let file = held(c"file");
        assert_eq!((file.kind(), file.stat().st_size), (FileType::RegularFile, 5));
        // An object that takes over the name afterwards is not opened.
        fs::remove_file(dir.path().join("file")).unwrap();
        fs::rename(&fifo, dir.path().join("file")).unwrap();
        let mut text = String::new();
        File::from(file.open_file().unwrap().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "bytes");
        assert_eq!(Held::at(&open, c"nothing").unwrap_err(), Errno::NOENT);
    }
}
