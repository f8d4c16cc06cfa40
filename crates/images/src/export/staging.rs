//! Writes next to the target and renames on completion, so that no partial export is ever visible.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use inlay_base::durable;
use inlay_base::remove::remove_tree;
use rustix::fs::OFlags;
use tempfile::NamedTempFile;

use super::error::ExportError;

/// Prefix of temporary names.
const PREFIX: &str = ".inlay-export-";

/// A temporary file that becomes `target`. Removed if dropped before `commit`.
#[derive(Debug)]
pub struct StagedFile {
    file: NamedTempFile,
    target: PathBuf,
}

impl StagedFile {
    /// Creates the temporary file next to `target`, or next to the file that a symbolic link
    /// `target` refers to.
    pub fn new(target: &Path) -> Result<Self, ExportError> {
        let target = match fs::metadata(target) {
            // Replace the file behind a symbolic link, not the link.
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

    /// Appends bytes.
    pub fn write(&self, bytes: &[u8]) -> Result<(), ExportError> {
        self.file.as_file().write_all(bytes).map_err(unwritten(&self.target))
    }

    /// Syncs the file and renames it to its target.
    pub fn commit(self) -> Result<(), ExportError> {
        durable::publish(self.file, &self.target).map_err(unwritten(&self.target))
    }
}

/// A temporary directory that becomes `target`. Removed with its contents if dropped before
/// `commit`.
#[derive(Debug)]
pub(super) struct StagedDir {
    dir: PathBuf,
    target: PathBuf,
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        // No-op after `commit`, which renamed it. A leftover is recognizable by its name.
        remove_tree(&self.dir).ok();
    }
}

impl StagedDir {
    /// Creates a directory next to `target`, which must be missing or an empty directory. Its mode
    /// is `mode`, less the umask.
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
            .map(tempfile::TempDir::keep)
            .map_err(unwritten(&target))?;
        Ok(Self { dir, target })
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// Opens the directory.
    pub(super) fn open(&self) -> io::Result<File> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
            .open(&self.dir)
    }

    /// Syncs the filesystem and renames the directory to its target. The caller passes a `handle`
    /// because the exported permissions may already deny opening the directory.
    pub(super) fn commit(self, handle: &File) -> Result<(), ExportError> {
        rustix::fs::syncfs(handle)
            .map_err(io::Error::from)
            .and_then(|()| durable::rename(&self.dir, &self.target))
            .map_err(unwritten(&self.target))
    }
}

/// Returns a closure that adds the path to a write error.
pub(super) fn unwritten(path: &Path) -> impl Fn(io::Error) -> ExportError {
    let path = path.to_owned();
    move |source| ExportError::Write { path: path.clone(), source }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
