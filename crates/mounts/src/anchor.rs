//! Identifies the mount-point directory of a nested mount by its file handle in the overlay's upper
//! directory, which survives renames.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, chmod, fstat, open, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::kernel;
use super::path::path_of;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The file handle of a directory in an upper directory (`name_to_handle_at(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    kind: i32,
    bytes: Vec<u8>,
}

impl Anchor {
    /// Returns the anchor of `dir`, which is at `path` below the root of an overlay with the upper
    /// directory `upper`. A directory of the lower layer is copied up first. `None` if the
    /// filesystem does not support handles.
    pub fn of(dir: BorrowedFd<'_>, upper: &Path, path: &Path) -> io::Result<Option<Self>> {
        let upper = open(upper, DIRECTORY, Mode::empty())?;
        let found = match below(&upper, path) {
            Err(Errno::NOENT) => {
                // Setting the mode it already has changes nothing, but triggers the copy-up.
                let mode = Mode::from_raw_mode(fstat(dir)?.st_mode & 0o7777);
                chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), mode)?;
                below(&upper, path)
            }
            other => other,
        };
        match kernel::handle_of(found?.as_fd()) {
            Ok((kind, bytes)) => Ok(Some(Self { kind, bytes })),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the directory's current path below `upper`; `None` if it is no longer there.
    pub fn find(&self, upper: &Path) -> io::Result<Option<PathBuf>> {
        // open_by_handle_at(2) does not accept an `O_PATH` descriptor.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = open(upper, flags, Mode::empty())?;
        let dir = match kernel::open_handle(upper.as_fd(), self.kind, &self.bytes) {
            Ok(dir) => dir,
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => return Ok(None),
            Err(error) => return Err(error),
        };
        match path_of(&dir) {
            Ok(dir) => Ok(dir.strip_prefix(path_of(&upper)?).ok().map(Path::to_owned)),
            // It was removed, but is still open somewhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn below(upper: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(upper, path, DIRECTORY, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use rustix::fs::CWD;
    use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
    use std::fs;

    /// An overlay, unmounted on drop.
    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            unmount(&self.0, UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn a_directory_is_found_whatever_it_is_renamed_to() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["lower/a/b/deep", "lower/other", "upper", "work", "merged"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let tree = testing::overlay(&at("lower"), &at("upper"), &at("work"));
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, at("merged"), empty).unwrap();
        let mounted = Mounted(at("merged"));
        let take = |path: &str| {
            let dir = open(mounted.0.join(path), DIRECTORY, Mode::empty()).unwrap();
            Anchor::of(dir.as_fd(), &at("upper"), path.as_ref()).unwrap().unwrap()
        };
        // One from the lower layer, and one from the upper.
        let deep = take("a/b/deep");
        fs::create_dir_all(mounted.0.join("new/x")).unwrap();
        let new = take("new/x");
        let find = |anchor: &Anchor| anchor.find(&at("upper")).unwrap();
        assert_eq!(find(&deep).unwrap(), Path::new("a/b/deep"));
        fs::rename(mounted.0.join("a"), mounted.0.join("other/c")).unwrap();
        fs::rename(mounted.0.join("new"), mounted.0.join("a")).unwrap();
        assert_eq!(find(&deep).unwrap(), Path::new("other/c/b/deep"));
        assert_eq!(find(&new).unwrap(), Path::new("a/x"));
        let json = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<Anchor>(&json).unwrap(), new);
        fs::remove_dir(mounted.0.join("a/x")).unwrap();
        assert_eq!(find(&new), None);
    }
}
