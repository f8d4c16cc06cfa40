//! Where something is copied from or to: a root directory, and a path that does not leave it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2};
use rustix::io::Errno;

use super::error::CopyError;
use crate::in_root;

/// A root directory.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// What a path means to whoever copies to it.
#[derive(Debug)]
pub struct Place {
    /// The directory that gets the copy.
    pub(super) dir: OwnedFd,
    /// The name that the copied object gets there; `None`: its own.
    pub(super) name: Option<Vec<u8>>,
    /// The path, for messages.
    pub(super) path: PathBuf,
}

impl Root {
    /// The directory at `path` of this process: `/` for this host, `/proc/PID/root` for what another
    /// process sees.
    pub fn open(path: &Path) -> Result<Self, CopyError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).map(Self).map_err(CopyError::io("open", path))
    }

    /// The object at `path`, itself a symbolic link or not.
    pub(super) fn object(&self, path: &Path) -> Result<(OwnedFd, Stat), CopyError> {
        let object = self.look(path, OFlags::PATH | OFlags::NOFOLLOW);
        let object = object.map_err(CopyError::io("find", path))?;
        let stat = fstat(&object).map_err(CopyError::io("look at", path))?;
        Ok((object, stat))
    }

    /// What copying to `path` means: into it, if it is a directory, else to that name. The words of
    /// `cp` and `docker cp`.
    pub fn place(&self, path: &Path) -> Result<Place, CopyError> {
        let wants_directory = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        match self.look(path, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(dir) => return Ok(Place { dir, name: None, path: path.to_owned() }),
            Err(Errno::NOTDIR) if wants_directory => {
                let why = "it is no directory";
                return Err(CopyError::InTheWay { path: path.to_owned(), why });
            }
            Err(Errno::NOENT) if wants_directory => {
                let why = "there is no such directory; make it first";
                return Err(CopyError::InTheWay { path: path.to_owned(), why });
            }
            Err(Errno::NOTDIR | Errno::NOENT) => {}
            Err(other) => return Err(CopyError::io("find", path)(other)),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(CopyError::io("find", path)(Errno::NOENT));
        };
        let dir = self.look(parent, OFlags::PATH | OFlags::DIRECTORY);
        let dir = dir.map_err(CopyError::io("find the directory", parent))?;
        let name = Some(name.as_encoded_bytes().to_vec());
        Ok(Place { dir, name, path: path.to_owned() })
    }

    fn look(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        in_root::open(&self.0, path, flags)
    }
}

/// A directory below `base` that no symbolic link leads to, open for reading.
pub(super) fn below(base: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(base, path, flags, Mode::empty(), resolve)
}

/// A regular file `name` in `dir`, open for reading; `None` if it is anything else by now.
pub(super) fn regular(dir: impl AsFd, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    // Whatever takes the file's place: it is not waited for, and not followed.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(other) => return Err(other),
    };
    let regular = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile;
    Ok(regular.then_some(file))
}
