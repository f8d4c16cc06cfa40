//! The cache itself: finding, verifying, storing and removing files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Entry, Identity, Reject, disk_cost, file_cost};
use super::health::Health;
use super::open_files::{OpenFiles, Opening};
use super::staging::{OpeningLock, Others, Staging, make_dir};
use super::stats::{CacheFigures, Counters, count};
use super::usage::{Outcome, Usage};
use super::{CacheError, CacheOptions, Insert, Lookup};
use crate::format::layout::GROUP_RAW_LEN_MAX;
use crate::ids::GroupDigest;

/// The host cache. Clones share everything; other processes may have the same directory open.
#[derive(Debug, Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    groups: PathBuf,
    budget: u64,
    staging: Staging,
    usage: Usage,
    files: OpenFiles,
    health: Health,
    counters: Counters,
}

impl Cache {
    /// Opens the cache in `dir`, which is created if it is not there.
    ///
    /// Removes the temporary files of processes that died. Reads no group: each proves itself when
    /// it is first used. Costs the same whatever the cache holds, except after a crash: then the
    /// first to open it looks at the size of every file.
    pub fn open(dir: &Path, options: CacheOptions) -> Result<Self, CacheError> {
        let groups = dir.join("groups");
        make_dir(&groups).map_err(CacheError::io("creating", &groups))?;
        let opening = OpeningLock::wait(dir)?;
        let (staging, others) = Staging::open(dir, &opening)?;
        let path = dir.join("usage");
        let usage = Usage::open(&path).map_err(CacheError::io("opening", &path))?;
        if others == Others::Dead || usage.valid().is_none() {
            let bytes = measure(&groups).map_err(CacheError::io("measuring", &groups))?;
            usage.reset(bytes).map_err(CacheError::io("writing", &path))?;
        }
        drop(opening);
        let counters = Counters::default();
        counters.disk_bytes.store(usage.valid().unwrap_or(0), Ordering::Relaxed);
        let inner = Inner {
            dir: dir.to_owned(),
            groups,
            budget: options.budget.map_or(u64::MAX, |size| size.0),
            staging,
            usage,
            files: OpenFiles::new(options.open_files.max(16)),
            health: Health::new(options.pause_after_failure),
            counters,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Fills `buf` with the decoded bytes of `group` from `offset`, if the cache has all of them.
    ///
    /// Never waits for the network; the first read of a group in this process reads and verifies
    /// its whole file. Whatever goes wrong is a miss.
    pub fn read(&self, group: &GroupDigest, offset: u32, buf: &mut [u8]) -> Lookup {
        let counters = &self.inner.counters;
        let found = self.inner.entry(group).filter(|entry| entry.covers(offset, buf.len()));
        let Some(entry) = found else {
            count(&counters.misses);
            return Lookup::Miss;
        };
        match entry.read(offset, buf) {
            Ok(()) => {
                count(&counters.hits);
                Lookup::Hit
            }
            Err(error) => {
                self.inner.read_failed(group, &entry, &error);
                count(&counters.misses);
                Lookup::Miss
            }
        }
    }

    /// All decoded bytes of `group`. Otherwise like `read`.
    pub fn read_all(&self, group: &GroupDigest) -> Option<Vec<u8>> {
        let len = self.inner.entry(group)?.len();
        let mut decoded = vec![0; len as usize];
        (self.read(group, 0, &mut decoded) == Lookup::Hit).then_some(decoded)
    }

    /// Whether there is a file for `group`. It may still turn out to be wrong when it is read.
    pub fn contains(&self, group: &GroupDigest) -> bool {
        self.inner.files.holds(group) || self.inner.path(group).exists()
    }

    /// Stores the decoded bytes of `group`, which the caller has verified. Blocks on the disk.
    pub fn insert(&self, group: &GroupDigest, decoded: &[u8]) -> Insert {
        if decoded.is_empty() || decoded.len() > GROUP_RAW_LEN_MAX as usize {
            return Insert::Failed(CacheError::Size(decoded.len()));
        }
        if !self.inner.health.may_write() {
            return Insert::Paused;
        }
        if self.contains(group) {
            return Insert::AlreadyThere;
        }
        let counters = &self.inner.counters;
        match self.inner.store(group, decoded) {
            Ok(Stored::New) => {
                self.inner.health.succeeded();
                count(&counters.inserted_groups);
                counters.inserted_bytes.fetch_add(decoded.len() as u64, Ordering::Relaxed);
                Insert::Stored
            }
            Ok(Stored::Before) => Insert::AlreadyThere,
            Ok(Stored::NoRoom) => {
                count(&counters.refused_full);
                Insert::Full
            }
            Err(error) => {
                self.inner.health.failed(&error);
                count(&counters.write_failures);
                Insert::Failed(error)
            }
        }
    }

    /// What happened since it was opened.
    pub fn figures(&self) -> CacheFigures {
        self.inner.counters.figures()
    }
}

enum Stored {
    New,
    Before,
    NoRoom,
}

impl Inner {
    fn path(&self, group: &GroupDigest) -> PathBuf {
        let name = group.0.to_hex();
        self.groups.join(name.get(..2).unwrap_or("")).join(&name)
    }

    /// The open, proved file of `group`.
    fn entry(&self, group: &GroupDigest) -> Option<Arc<Entry>> {
        if let Some(entry) = self.files.get(group) {
            return Some(entry);
        }
        let path = self.path(group);
        let opening = self.files.opening(group);
        if let Some(entry) = opening.get(group) {
            return Some(entry);
        }
        let (file, identity) = match open(&path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "opening a cache file");
                count(&self.counters.read_failures);
                return None;
            }
        };
        match self.prove(&opening, file, identity, group) {
            Ok(entry) => {
                let entry = Arc::new(entry);
                opening.put(*group, identity, Arc::clone(&entry));
                Some(entry)
            }
            Err(Reject::Wrong) => {
                tracing::warn!(path = %path.display(), "a damaged cache file is removed");
                count(&self.counters.verify_failures);
                self.remove(&path, identity);
                None
            }
            Err(Reject::Io(error)) => {
                tracing::warn!(path = %path.display(), %error, "a cache file can't be read");
                count(&self.counters.read_failures);
                self.remove(&path, identity);
                None
            }
        }
    }

    fn prove(
        &self,
        opening: &Opening<'_>,
        file: File,
        identity: Identity,
        group: &GroupDigest,
    ) -> Result<Entry, Reject> {
        if opening.is_proved(group, identity) {
            return Entry::trusted(file, identity);
        }
        let entry = Entry::verified(file, identity, *group)?;
        count(&self.counters.verified);
        Ok(entry)
    }

    /// A file that had proved itself could not be read: cut short, or the disk fails.
    fn read_failed(&self, group: &GroupDigest, entry: &Entry, error: &io::Error) {
        let path = self.path(group);
        tracing::warn!(path = %path.display(), %error, "a cache file is removed");
        count(&self.counters.read_failures);
        self.files.forget(group);
        if let Ok(identity) = entry.identity() {
            self.remove(&path, identity);
        }
    }

    /// Removes the file `identity` if it still has the name `path`.
    fn remove(&self, path: &Path, identity: Identity) {
        let same = fs::symlink_metadata(path)
            .is_ok_and(|meta| Identity::from_metadata(&meta).inode() == identity.inode());
        // A new file may take the name in this instant and be removed in its stead: then it is
        // fetched once more.
        if same && fs::remove_file(path).is_ok() {
            self.release(file_cost(identity.file_len()));
        }
    }

    fn store(&self, group: &GroupDigest, decoded: &[u8]) -> Result<Stored, CacheError> {
        let Some(space) = self.reserve(disk_cost(decoded.len() as u64))? else {
            return Ok(Stored::NoRoom);
        };
        let (staged, file) =
            self.staging.create().map_err(CacheError::io("creating a file in", &self.dir))?;
        let entry = Entry::write(file, *group, decoded)
            .map_err(CacheError::io("writing", staged.path()))?;
        let identity = entry.identity().map_err(CacheError::io("reading", staged.path()))?;
        let path = self.path(group);
        match link(staged.path(), &path) {
            Ok(()) => {
                space.keep();
                self.files.put(*group, identity, Arc::new(entry));
                Ok(Stored::New)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Stored::Before),
            Err(error) => Err(CacheError::io("naming", path)(error)),
        }
    }

    fn reserve(&self, cost: u64) -> Result<Option<Space<'_>>, CacheError> {
        let budget = self.budget;
        let (bytes, outcome) = self
            .usage
            .update(|bytes| bytes.checked_add(cost).filter(|sum| *sum <= budget))
            .map_err(CacheError::io("updating the usage of", &self.dir))?;
        self.counters.disk_bytes.store(bytes, Ordering::Relaxed);
        // Lazily: a `Space` that is made and dropped gives back what it never took.
        Ok((outcome == Outcome::Changed).then(|| Space { cache: self, cost }))
    }

    fn release(&self, cost: u64) {
        match self.usage.update(|bytes| Some(bytes.saturating_sub(cost))) {
            Ok((bytes, _)) => self.counters.disk_bytes.store(bytes, Ordering::Relaxed),
            // The count is too high from now on, which only means that less is stored.
            Err(error) => tracing::debug!(%error, "the cache's usage can't be updated"),
        }
    }
}

/// Reserved space. Given back when dropped, unless kept.
struct Space<'a> {
    cache: &'a Inner,
    cost: u64,
}

impl Space<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        self.cache.release(self.cost);
    }
}

fn open(path: &Path) -> io::Result<(File, Identity)> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(no_follow).open(path)?;
    let identity = Identity::of(&file)?;
    Ok((file, identity))
}

/// Gives the file `from` the name `to` as well. Unlike a rename this never replaces a file, so that
/// of two writers of one group exactly one counts its bytes.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(dir) = to.parent() {
                make_dir(dir)?;
            }
            fs::hard_link(from, to)
        }
        done => done,
    }
}

/// What all files together count against the budget.
fn measure(groups: &Path) -> io::Result<u64> {
    let mut bytes = 0u64;
    for dir in fs::read_dir(groups)? {
        for file in fs::read_dir(dir?.path())? {
            bytes = bytes.saturating_add(file_cost(file?.metadata()?.len()));
        }
    }
    Ok(bytes)
}
