//! Removes directories that a sandbox has filled, however deeply it has nested them.
//!
//! Directories are moved up beside each other instead of being descended into, so that neither the
//! stack nor the number of open files depends on who made them.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::error::SandboxError;

/// Removes `dir` and all that is in it, if it is there. Nothing may be mounted below it.
pub(super) fn remove_tree(dir: &Path) -> Result<(), SandboxError> {
    let failed = |error| SandboxError::io("remove", dir)(error);
    match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.is_dir() => return fs::remove_file(dir).map_err(failed),
        Ok(_) => {}
    }
    flatten(dir).map_err(failed)
}

fn flatten(dir: &Path) -> io::Result<()> {
    // Where directories are moved: in `dir` itself, so that a crash leaves no more than there was.
    let heap = dir.join(".sweeping");
    match DirBuilder::new().mode(0o700).create(&heap) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    let mut next = first_free(&heap)?;
    empty(dir, &heap, &mut next, Some(OsStr::new(".sweeping")))?;
    loop {
        let mut any = false;
        for entry in fs::read_dir(&heap)? {
            any = true;
            let path = entry?.path();
            empty(&path, &heap, &mut next, None)?;
            fs::remove_dir(&path)?;
        }
        if !any {
            break;
        }
    }
    fs::remove_dir(&heap)?;
    fs::remove_dir(dir)
}

/// Removes the files of `dir` and moves its directories to `heap`.
fn empty(dir: &Path, heap: &Path, next: &mut u64, except: Option<&OsStr>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if except == Some(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            fs::rename(&path, heap.join(next.to_string()))?;
            *next += 1;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn first_free(heap: &Path) -> io::Result<u64> {
    let mut next = 0;
    for entry in fs::read_dir(heap)? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
        next = next.max(number.map_or(0, |number| number + 1));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_of_any_depth_is_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&kept, tree.join("a/link")).unwrap();
        // Deeper than a path can say, and than there are descriptors.
        let mut at =
            rustix::fs::open(&tree, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
                .unwrap();
        }
        drop(at);
        // As after a crash.
        fs::create_dir_all(tree.join(".sweeping/7/x")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&kept.join("file")).unwrap();
        assert!(!kept.join("file").exists());
    }
}
