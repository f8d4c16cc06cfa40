//! A directory for one process's temporary files, which the next process removes after a crash.
//!
//! Whoever uses such a directory holds the lock of the file beside it. Locks end with their process,
//! so a directory whose lock is free belongs to nobody.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

const LOCK: &str = "lock";

/// This process's directory. Removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Removes what dead processes have left in `parent`, and makes a new directory there.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        sweep(parent)?;
        for number in 0u32.. {
            let path = parent.join(format!("{}-{number}", std::process::id()));
            let lock_path = path.with_extension(LOCK);
            let lock = File::options().create(true).truncate(false).write(true).open(&lock_path)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            // Another process may have swept the file away before it was locked.
            if !is_at(&lock, &lock_path) {
                continue;
            }
            remove_dir(&path)?;
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
        // What can't be removed now is removed by the next command.
        if remove_dir(&self.path).is_ok() {
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
        let Ok(lock) = File::options().write(true).open(&lock_path) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_at(&lock, &lock_path)
        {
            remove_dir(&lock_path.with_extension(""))?;
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

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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
    fn what_a_dead_process_left_is_removed_and_what_lives_stays() {
        let parent = tempfile::tempdir().unwrap();
        let living = Scratch::new(parent.path()).unwrap();
        // A process that was killed: its directory and its lock file, locked by nobody.
        let dead = parent.path().join("999999-0");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("layer"), b"half").unwrap();
        fs::write(dead.with_extension(LOCK), b"").unwrap();
        let next = Scratch::new(parent.path()).unwrap();
        assert!(!dead.exists() && !dead.with_extension(LOCK).exists());
        assert!(living.path().exists() && next.path().exists());
    }
}
