//! Staging directories, where files are written before they get their final names; one for each
//! open cache.
//!
//! The `lock` file in the directory stays locked while its owner lives. The next process that opens
//! the cache can therefore distinguish leftovers of dead processes from work in progress,
//! regardless of pids. The file also holds the owner's reservations, for recounts.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CacheError;
use super::disk::{Disk, Open};
use super::reserved::{Reserved, published};

const LOCK: &str = "lock";

/// The staging directory of this open cache. Removed on drop.
#[derive(Debug)]
pub(super) struct Staging {
    cache: PathBuf,
    dir: PathBuf,
    next: AtomicU64,
    /// Closing it tells other processes that this owner is gone.
    lock: File,
}

/// The other owners of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// None, and every earlier owner has closed it.
    None,
    /// None alive, but some died with the cache open.
    Dead,
    /// At least one is alive.
    Alive,
}

impl Staging {
    /// Removes the leftovers of dead owners in the cache at `cache`, and creates a directory for
    /// this owner. Atomic with respect to other openers, because the caller holds the opening lock.
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
        // Waits only for a probe by another process, see `is_locked`.
        lock.lock().map_err(CacheError::io("locking", &path))?;
        Ok((Self { cache: cache.to_owned(), dir, next: AtomicU64::new(0), lock }, others))
    }

    /// Publishes the reservations of this owner. Called once.
    pub(super) fn reserved(&self) -> io::Result<Reserved> {
        Reserved::in_file(self.lock.try_clone()?)
    }

    /// Returns the bytes that other live owners have reserved and not yet written.
    pub(super) fn reserved_by_others(&self) -> io::Result<u64> {
        let mut sum = 0u64;
        for entry in fs::read_dir(self.cache.join("staging"))? {
            let path = entry?.path();
            if path == self.dir {
                continue;
            }
            match File::open(path.join(LOCK)) {
                Ok(file) if is_locked(&file)? => sum = sum.saturating_add(published(&file)?),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sum)
    }

    /// Creates a file under a unique name.
    pub(super) fn create(&self, disk: &Arc<dyn Disk>) -> io::Result<(Staged, File)> {
        let staged = self.name(disk);
        let file = disk.open(&staged.path, Open::New)?;
        Ok((staged, file))
    }

    /// Reserves a unique name for a file that the caller creates.
    pub(super) fn name(&self, disk: &Arc<dyn Disk>) -> Staged {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Staged { path: self.dir.join(number.to_string()), disk: Arc::clone(disk) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Take the opening lock, so that a concurrent opener does not see a half-removed directory.
        let right = OpeningLock::wait(&self.cache);
        // The next open removes the leftovers of a failure.
        let _ = fs::remove_dir_all(&self.dir);
        drop(right);
    }
}

/// The lock for opening or closing a cache, held by one process at a time.
pub(super) struct OpeningLock {
    _file: File,
}

impl OpeningLock {
    /// Blocks until the lock is acquired. Released on drop.
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

/// The temporary name of a file. Removed on drop; the file survives under its final name.
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
        // On failure, the name is removed with the directory.
        let _ = self.disk.remove(&self.path);
    }
}

/// Creates a directory accessible to the owner alone. Succeeds if it exists.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Removes the directories of dead owners. Returns which other owners were found.
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

/// Returns whether an owner still holds its lock.
fn is_alive(lock: &Path) -> io::Result<bool> {
    match File::open(lock) {
        Ok(file) => is_locked(&file),
        // Its owner died before it created the lock, or while it removed the directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether an owner holds the lock. The lock taken for the probe is a shared one, so that
/// concurrent probes do not take each other for the owner.
fn is_locked(lock: &File) -> io::Result<bool> {
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
