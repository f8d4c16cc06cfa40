//! Resolves the source and the target of a copy: a path beneath a root directory that it can't
//! escape.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use inlay_base::held::Held;
use inlay_base::in_root;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::error::CopyError;

/// A root directory.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// A resolved target.
#[derive(Debug)]
pub struct Place {
    /// The directory to copy into, an `O_PATH` descriptor.
    pub(super) dir: OwnedFd,
    /// The name of the copied object there; `None`: its own.
    pub(super) name: Option<Vec<u8>>,
    /// The path, for messages.
    pub(super) path: PathBuf,
}

impl Root {
    /// Opens the directory at `path` as a root: `/` for this host, `/proc/PID/root` for another
    /// process's view.
    pub fn open(path: &Path) -> Result<Self, CopyError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).map(Self).map_err(CopyError::io("open", path))
    }

    /// Opens the object at `path`; a trailing symlink is not followed.
    pub(super) fn object(&self, path: &Path) -> Result<Held, CopyError> {
        let object = self.open_in_root(path, OFlags::PATH | OFlags::NOFOLLOW);
        object.and_then(Held::of).map_err(CopyError::io("find", path))
    }

    /// Resolves `path` as a target with the semantics of `cp` and `docker cp`: if it is a
    /// directory, the object is copied into it, otherwise to that name.
    pub fn place(&self, path: &Path) -> Result<Place, CopyError> {
        let wants_directory = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        match self.open_in_root(path, OFlags::PATH | OFlags::DIRECTORY) {
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
        let dir = self.open_in_root(parent, OFlags::PATH | OFlags::DIRECTORY);
        let dir = dir.map_err(CopyError::io("find the directory", parent))?;
        let name = Some(name.as_encoded_bytes().to_vec());
        Ok(Place { dir, name, path: path.to_owned() })
    }

    fn open_in_root(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        in_root::open(&self.0, path, flags)
    }
}
