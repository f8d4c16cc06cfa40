//! Lists and detaches the mounts below a sandbox's directory.

use std::fs;
use std::path::{Path, PathBuf};

use inlay_base::mountinfo;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::error::SandboxError;

/// Returns the mount points at and below `dir`, an absolute path without symlinks, most recent
/// first.
pub(super) fn below(dir: &Path) -> Result<Vec<PathBuf>, SandboxError> {
    let table =
        fs::read(mountinfo::OWN).map_err(SandboxError::io("read", mountinfo::OWN.as_ref()))?;
    let mounts = mountinfo::parse(&table).into_iter().map(|line| line.path);
    let mut found: Vec<PathBuf> = mounts.filter(|path| path.starts_with(dir)).collect();
    found.reverse();
    Ok(found)
}

/// Reports whether `dir` is a mount point.
pub(super) fn is_mounted(dir: &Path) -> Result<bool, SandboxError> {
    Ok(below(dir)?.iter().any(|path| path == dir))
}

/// Lazily unmounts everything stacked at `dir`. Idempotent; processes that use a mount keep it.
pub(super) fn detach(dir: &Path) -> Result<(), SandboxError> {
    loop {
        match unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(SandboxError::io("unmount", dir)(errno)),
        }
    }
}

/// Lazily unmounts everything at and below `dir`. Fails with [`SandboxError::StillMounted`] if a
/// mount remains.
pub(super) fn detach_all(dir: &Path) -> Result<(), SandboxError> {
    let Ok(dir) = fs::canonicalize(dir) else { return Ok(()) };
    for path in below(&dir)? {
        detach(&path)?;
    }
    match below(&dir)?.into_iter().next() {
        Some(path) => Err(SandboxError::StillMounted(path)),
        None => Ok(()),
    }
}
