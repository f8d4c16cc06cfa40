//! What is mounted in a sandbox's directory.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::cgroup::unescape;
use super::error::SandboxError;

const MOUNTS: &str = "/proc/self/mountinfo";

/// The mount points at and below `dir`, an absolute path without symbolic links; what was mounted
/// last first.
pub(super) fn below(dir: &Path) -> Result<Vec<PathBuf>, SandboxError> {
    let text = fs::read(MOUNTS).map_err(SandboxError::io("read", MOUNTS.as_ref()))?;
    let mut found: Vec<PathBuf> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(dir))
        .collect();
    found.reverse();
    Ok(found)
}

/// Whether something is mounted at `dir`.
pub(super) fn is_mounted(dir: &Path) -> Result<bool, SandboxError> {
    Ok(below(dir)?.iter().any(|path| path == dir))
}

/// Takes what is mounted at `dir` out of the tree, if anything is, whoever uses it.
pub(super) fn detach(dir: &Path) -> Result<(), SandboxError> {
    loop {
        match unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(SandboxError::io("unmount", dir)(errno)),
        }
    }
}

/// Takes all that is mounted at and below `dir` out of the tree.
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
