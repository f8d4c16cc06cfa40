//! Writes beside the target and puts it in place when it is complete, so that nobody sees a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tempfile::{NamedTempFile, TempDir};

use super::error::ExportError;

/// How the names begin of what is not complete.
const PREFIX: &str = ".inlay-export-";

/// A file on its way to `target`. Goes when dropped before `commit`.
#[derive(Debug)]
pub(crate) struct StagedFile {
    file: NamedTempFile,
    target: PathBuf,
}

impl StagedFile {
    pub(crate) fn new(target: &Path) -> Result<Self, ExportError> {
        let target = match fs::metadata(target) {
            // Not the link's name but what it names is replaced.
            Ok(there) if there.is_file() => fs::canonicalize(target).map_err(unwritten(target))?,
            Ok(_) => return Err(ExportError::NotAFile(target.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => target.to_owned(),
            Err(error) => return Err(unwritten(target)(error)),
        };
        let file = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(parent(&target))
            .map_err(unwritten(&target))?;
        Ok(Self { file, target })
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Adds bytes at the end.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), ExportError> {
        self.file.as_file().write_all(bytes).map_err(unwritten(&self.target))
    }

    /// Makes it durable and gives it its name.
    pub(crate) fn commit(self) -> Result<(), ExportError> {
        let target = self.target;
        self.file
            .as_file()
            .sync_all()
            .and_then(|()| self.file.persist(&target).map_err(|e| e.error))
            .and_then(|_| sync_parent(&target))
            .map_err(unwritten(&target))
    }
}

/// A directory on its way to `target`. Goes, with all in it, when dropped before `commit`.
#[derive(Debug)]
pub(super) struct StagedDir {
    dir: TempDir,
    target: PathBuf,
}

impl StagedDir {
    /// A new directory beside `target`, which does not exist or is an empty directory.
    /// It gets `mode`, less the process's umask.
    pub(super) fn new(target: &Path, mode: u32) -> Result<Self, ExportError> {
        let target = match fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
            Ok(true) => fs::canonicalize(target).map_err(unwritten(target))?,
            Ok(false) => return Err(ExportError::NotEmpty(target.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => target.to_owned(),
            Err(error) => return Err(unwritten(target)(error)),
        };
        if target.file_name().is_none() {
            return Err(ExportError::NoName(target));
        }
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(mode))
            .tempdir_in(parent(&target))
            .map_err(unwritten(&target))?;
        Ok(Self { dir, target })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory itself.
    pub(super) fn open(&self) -> io::Result<File> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
            .open(self.dir.path())
    }

    /// Makes all of it durable and gives it its name. `handle` is the directory itself, which its
    /// owner's permissions may already have closed to this process.
    pub(super) fn commit(self, handle: &File) -> Result<(), ExportError> {
        rustix::fs::syncfs(handle)
            .map_err(io::Error::from)
            .and_then(|()| fs::rename(self.dir.path(), &self.target))
            .map_err(unwritten(&self.target))?;
        // It has another name now: there is nothing left to remove.
        let _ = self.dir.keep();
        sync_parent(&self.target).map_err(unwritten(&self.target))
    }
}

/// An error that says what could not be written.
pub(super) fn unwritten(path: &Path) -> impl Fn(io::Error) -> ExportError {
    let path = path.to_owned();
    move |source| ExportError::Write { path: path.clone(), source }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}
