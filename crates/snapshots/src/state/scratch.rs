//! Manages a process's directory of temporary files, which the next process removes after a crash.
//!
//! The owner of such a directory holds a lock on the file next to it. Locks end with their process,
//! so a directory with a free lock is stale.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use inlay_base::remove::remove_tree;
use rustix::fs::{FlockOperation, OFlags, flock};

const LOCK: &str = "lock";

/// Opening an object in place of the lock file must neither block nor follow a link.
const LOCK_FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// This process's directory, removed on drop.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Removes directories of dead processes in `parent`, and creates a new one there.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        sweep(parent)?;
        for number in 0u32.. {
            let path = parent.join(format!("{}-{number}", std::process::id()));
            let lock_path = path.with_extension(LOCK);
            let mut options = File::options();
            options.create(true).truncate(false).write(true).custom_flags(LOCK_FLAGS);
            let lock = options.open(&lock_path)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            // Another process may have swept the file before it was locked.
            if !is_at(&lock, &lock_path) {
                continue;
            }
            remove_tree(&path)?;
            DirBuilder::new().mode(0o700).create(&path)?;
            return Ok(Self { path, lock_path, _lock: lock });
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover is removed by the next command.
        if remove_tree(&self.path).is_ok() {
            fs::remove_file(&self.lock_path).ok();
        }
    }
}

fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let lock_path = entry?.path();
        if lock_path.extension().is_none_or(|extension| extension != LOCK) {
            continue;
        }
        let lock = File::options().write(true).custom_flags(LOCK_FLAGS).open(&lock_path);
        let Ok(lock) = lock else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_at(&lock, &lock_path)
        {
            remove_tree(&lock_path.with_extension(""))?;
            fs::remove_file(&lock_path)?;
        }
    }
    Ok(())
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let one = Scratch::new(parent.path()).unwrap();
        let two = Scratch::new(parent.path()).unwrap();
        assert_ne!(one.path(), two.path());
        fs::write(one.path().join("file"), b"x").unwrap();
        drop(two);
        assert!(one.path().join("file").exists());
        drop(one);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn scratch_of_dead_processes_is_removed_and_of_live_ones_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let living = Scratch::new(parent.path()).unwrap();
        // Left by a killed process: its directory and its unlocked lock file.
        let dead = parent.path().join("999999-0");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("layer"), b"half").unwrap();
        fs::write(dead.with_extension(LOCK), b"").unwrap();
        let next = Scratch::new(parent.path()).unwrap();
        assert!(!dead.exists() && !dead.with_extension(LOCK).exists());
        assert!(living.path().exists() && next.path().exists());
    }
}
