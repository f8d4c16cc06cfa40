//! Where files are written before they get their names, one directory for each open cache.
//!
//! The directory's `lock` file is locked for as long as its owner lives, so whoever opens the cache
//! next can tell the leavings of the dead from the work of the living, whatever pids they had.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CacheError;
use super::disk::{Disk, Open};

const LOCK: &str = "lock";

/// This cache's own directory. Removed when dropped.
#[derive(Debug)]
pub(super) struct Staging {
    cache: PathBuf,
    dir: PathBuf,
    next: AtomicU64,
    /// Held, not used: closing it is what tells others that this owner is gone.
    _lock: File,
}

/// Who else has the cache open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// Nobody, and whoever had it open has closed it.
    None,
    /// Nobody alive, but some died with it open.
    Dead,
    /// Somebody.
    Alive,
}

impl Staging {
    /// Removes what the dead left in the cache at `cache` and makes a directory for this owner.
    /// Nobody else is between these two steps, because the caller shows that it has the right.
    pub(super) fn open(cache: &Path, _right: &OpeningLock) -> Result<(Self, Others), CacheError> {
        let parent = &cache.join("staging");
        make_dir(parent).map_err(CacheError::io("creating", parent))?;
        let others = clear(parent).map_err(CacheError::io("clearing", parent))?;
        let prefix = format!("{}-", std::process::id());
        let dir = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(CacheError::io("creating a directory in", parent))?
            .keep();
        let path = dir.join(LOCK);
        let lock = new_file(&path).map_err(CacheError::io("creating", &path))?;
        lock.try_lock().map_err(|error| CacheError::io("locking", &path)(error.into()))?;
        Ok((Self { cache: cache.to_owned(), dir, next: AtomicU64::new(0), _lock: lock }, others))
    }

    /// A new file under a name of its own.
    pub(super) fn create(&self, disk: &Arc<dyn Disk>) -> io::Result<(Staged, File)> {
        let staged = self.name(disk);
        let file = disk.open(&staged.path, Open::New)?;
        Ok((staged, file))
    }

    /// A name of its own for a file that the caller makes.
    pub(super) fn name(&self, disk: &Arc<dyn Disk>) -> Staged {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Staged { path: self.dir.join(number.to_string()), disk: Arc::clone(disk) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // So that nobody who opens the cache now sees half of it go.
        let right = OpeningLock::wait(&self.cache);
        // What can't be removed now is removed by the next opening.
        let _ = fs::remove_dir_all(&self.dir);
        drop(right);
    }
}

/// The right to open or close a cache; one process has it at a time.
pub(super) struct OpeningLock {
    _file: File,
}

impl OpeningLock {
    /// Waits for the right, and holds it until dropped.
    pub(super) fn wait(cache: &Path) -> Result<Self, CacheError> {
        let path = cache.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(CacheError::io("opening", &path))?;
        file.lock().map_err(CacheError::io("locking", &path))?;
        Ok(Self { _file: file })
    }
}

/// A file's temporary name. Removed when dropped; the file lives on under its other name.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Staged {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // One that can't be removed now goes with the directory.
        let _ = self.disk.remove(&self.path);
    }
}

/// Creates a directory for the owner alone; one that is there is fine.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn clear(parent: &Path) -> io::Result<Others> {
    let mut others = Others::None;
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        match is_alive(&path.join(LOCK)) {
            Ok(true) => others = Others::Alive,
            Ok(false) => {
                fs::remove_dir_all(&path)?;
                if others == Others::None {
                    others = Others::Dead;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(others)
}

fn is_alive(lock: &Path) -> io::Result<bool> {
    match File::open(lock) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        },
        // Its owner died before it could make one, or while it removed the directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
