//! The public interface of the cache.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::budget::Budget;
use super::content::{ContentState, WholeContent};
use super::contents::Contents;
use super::disk::{Disk, SystemDisk};
use super::evict::{Evicted, Inventory, Spare};
use super::groups::Stored;
use super::health::Health;
use super::open_files::OpenFiles;
use super::pins::{self, PinSet};
use super::placement::{ContentId, Piece, Placement};
use super::room::{Fill, Room};
use super::staging::{OpeningLock, Others, Staging, make_dir};
use super::stats::{CacheStats, Counters, DiskState, count};
use super::usage::{UNKNOWN, Usage};
use super::verify::Verified;
use super::worker::{Worker, WorkerThread};
use super::{CacheError, CacheOptions, Insert, Lookup};
use crate::format::layout::GROUP_RAW_LEN_MAX;
use crate::ids::{Digest, GroupDigest, SnapshotId};

/// The host cache. Clones share all state; other processes may have the same directory open.
///
/// A background thread seals and evicts; dropping the last clone joins it.
#[derive(Debug, Clone)]
pub struct Cache {
    // Dropped first, so that the thread's last work finds everything that it needs.
    _thread: Arc<WorkerThread>,
    pub(super) inner: Arc<CacheInner>,
}

#[derive(Debug)]
pub(super) struct CacheInner {
    pub(super) dir: PathBuf,
    pub(super) groups: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) staging: Staging,
    pub(super) room: Room,
    pub(super) files: OpenFiles,
    pub(super) contents: Contents,
    pub(super) health: Health,
    pub(super) counters: Counters,
    pub(super) worker: Arc<Worker>,
    /// The disk was full although the budget was not.
    pub(super) starved: AtomicBool,
    /// The disk failed, so the count may not match the disk.
    pub(super) suspect: AtomicBool,
    /// The end of the pause after an eviction that did not free enough.
    pub(super) rest_until: Mutex<Option<Instant>>,
    epoch: AtomicU64,
}

impl Cache {
    /// Opens the cache in `dir`. Creates it if it does not exist.
    ///
    /// Removes the temporary files of dead processes. Reads no group: each is verified on first
    /// use. The cost does not depend on the size of the cache, except after a crash: then the first
    /// opener stats every file.
    pub fn open(dir: &Path, options: CacheOptions) -> Result<Self, CacheError> {
        Self::on_disk(dir, options, Arc::new(SystemDisk))
    }

    pub(super) fn on_disk(
        dir: &Path,
        options: CacheOptions,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, CacheError> {
        let (groups, contents) = (dir.join("groups"), dir.join("contents"));
        for dir in [&groups, &contents] {
            make_dir(dir).map_err(CacheError::io("creating", dir))?;
        }
        let opening = OpeningLock::wait(dir)?;
        let (staging, others) = Staging::open(dir, &opening)?;
        if let Some(budget) = options.budget {
            let staged = staging.name(&disk);
            budget
                .remember(&*disk, dir, staged.path())
                .map_err(CacheError::io("writing the budget of", dir))?;
        }
        let budget = options.budget.or_else(|| Budget::remembered(dir)).unwrap_or_default();
        let path = dir.join("usage");
        let usage =
            Usage::open(&path, Arc::clone(&disk)).map_err(CacheError::io("opening", &path))?;
        let valid = others != Others::Dead && usage.valid().is_some();
        if !valid {
            usage.reset(UNKNOWN).map_err(CacheError::io("writing", &path))?;
        }
        let reserved = staging.reserved().map_err(CacheError::io("writing to", dir))?;
        let (owned, shared) = (dir.to_owned(), Arc::clone(&disk));
        let room = Room::new(owned, shared, budget, options.marks, usage, reserved);
        let open_files = options.open_files.max(16);
        let worker = Arc::<Worker>::default();
        let inner = Arc::new(CacheInner {
            dir: dir.to_owned(),
            groups,
            disk,
            staging,
            room,
            files: OpenFiles::new(open_files),
            contents: Contents::new(contents, open_files / 2),
            health: Health::new(options.pause_after_failure),
            counters: Counters::default(),
            worker: Arc::clone(&worker),
            starved: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            rest_until: Mutex::new(None),
            epoch: AtomicU64::new(1),
        });
        if !valid {
            if let Err(error) = inner.recount() {
                tracing::warn!(
                    %error,
                    dir = %dir.display(),
                    "can't measure the cache; it is read-only until that succeeds"
                );
            }
            inner.room.refresh();
        }
        drop(opening);
        let thread = WorkerThread::start(worker, Arc::downgrade(&inner))
            .map_err(CacheError::io("starting a thread for", dir))?;
        Ok(Self { _thread: Arc::new(thread), inner })
    }

    /// Fills `buf` with the decoded bytes of `group` from `offset`, if the group has a file of its
    /// own.
    ///
    /// Never waits for the network. The first read of a group in this process reads and verifies
    /// its whole file. Every error is a cache miss.
    pub fn read(&self, group: &GroupDigest, offset: u32, buf: &mut [u8]) -> Lookup {
        let lookup = self.inner.read_group(group, offset, buf);
        self.inner.counted(lookup)
    }

    /// Fills `buf` with the bytes of `extent`, a piece of `content` in `group`, from `skip` bytes
    /// into it. Reads the content file or the group file. Otherwise like `read`.
    pub fn read_piece(
        &self,
        content: &ContentId,
        group: &GroupDigest,
        extent: &Piece,
        skip: u32,
        buf: &mut [u8],
    ) -> Lookup {
        let Some(piece) = extent.fits(content).then(|| extent.part(skip, buf.len())).flatten()
        else {
            return Lookup::Miss;
        };
        let inner = &self.inner;
        let known = inner.contents.get(content);
        if inner.read_piece(&known, group, &piece, buf) == Lookup::Hit {
            return inner.counted(Lookup::Hit);
        }
        let lookup = inner.read_group(group, piece.group_offset, buf);
        if lookup == Lookup::Hit
            && inner.health.may_write()
            && inner.may_be_whole(content)
            && !matches!(&*known.state.read(), ContentState::Lie)
            && let Some(placement) = Placement::new(*content, std::slice::from_ref(extent))
        {
            inner.worker.adopt(*group, placement);
        }
        inner.counted(lookup)
    }

    /// Fills `buf` with the bytes of a content from `offset`, if it is sealed. Does not count a
    /// miss.
    pub fn read_whole(&self, content: &ContentId, offset: u64, buf: &mut [u8]) -> Lookup {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > content.size) {
            return Lookup::Miss;
        }
        let known = self.inner.contents.get(content);
        let ContentState::Sealed(sealed) = self.inner.state_of(&known) else { return Lookup::Miss };
        let lookup = self.inner.read_whole(&known, &sealed, offset, buf);
        if lookup == Lookup::Hit { self.inner.counted(lookup) } else { lookup }
    }

    /// Returns the sealed file of a content, if the cache has it: for `pread`, or for passthrough
    /// by the kernel. The file is not evicted while the returned value lives. Takes at most a few
    /// syscalls.
    pub fn whole(&self, digest: &Digest, size: u64) -> Option<WholeContent> {
        let known = self.inner.contents.get(&ContentId { digest: *digest, size });
        let sealed = self.inner.sealed(&known)?;
        known.mark_used();
        Some(WholeContent { sealed })
    }

    /// Exempts a content from eviction by this process. For callers that know only the digest of a
    /// file that the kernel is still reading.
    pub fn pin_content(&self, digest: &Digest) -> ContentPin {
        self.inner.contents.hold(*digest);
        ContentPin { inner: Arc::clone(&self.inner), digest: *digest }
    }

    /// Returns all decoded bytes of `group`. Otherwise like `read`.
    pub fn read_all(&self, group: &GroupDigest) -> Option<Vec<u8>> {
        let len = self.inner.entry(group)?.len();
        let mut decoded = vec![0; len as usize];
        (self.read(group, 0, &mut decoded) == Lookup::Hit).then_some(decoded)
    }

    /// Returns all `len` decoded bytes of `group`, from its content or from its own file.
    pub fn read_placed(
        &self,
        group: &GroupDigest,
        placement: Option<&Placement>,
        len: u32,
    ) -> Option<Vec<u8>> {
        let mut decoded = vec![0; len as usize];
        let placed = placement.is_some_and(|placement| {
            let known = self.inner.contents.get(placement.content());
            let mut at = 0;
            placement.pieces().iter().all(|piece| {
                let next = piece.group_offset == at;
                at += piece.len;
                let start = piece.group_offset as usize;
                let to = decoded.get_mut(start..start + piece.len as usize);
                next && to.is_some_and(|to| {
                    self.inner.read_piece(&known, group, piece, to) == Lookup::Hit
                })
            }) && at == len
        });
        if placed {
            return Some(decoded);
        }
        self.read_all(group).filter(|decoded| decoded.len() == len as usize)
    }

    /// Returns whether `group` has a file. Verification may still fail when it is read.
    pub fn contains(&self, group: &GroupDigest) -> bool {
        self.inner.files.holds(group) || self.inner.group_path(group).exists()
    }

    /// Returns whether the bytes of `group` are cached, in its own file or in its content.
    pub fn has(&self, group: &GroupDigest, placement: Option<&Placement>) -> bool {
        let placed = placement.is_some_and(|placement| {
            let known = self.inner.contents.get(placement.content());
            match self.inner.state_of(&known) {
                ContentState::Sealed(_) => true,
                ContentState::Part(part) if part.condemned.load(Ordering::Relaxed) => false,
                ContentState::Part(part) => placement
                    .pieces()
                    .iter()
                    .all(|piece| part.ranges.read().find(group, piece).is_some()),
                ContentState::Absent { .. } | ContentState::Lie => false,
            }
        });
        placed || self.contains(group)
    }

    /// Returns whether `read_piece` would probably find all of `extent`.
    pub fn has_piece(&self, content: &ContentId, group: &GroupDigest, extent: &Piece) -> bool {
        let placement = Placement::new(*content, std::slice::from_ref(extent));
        self.has(group, placement.as_ref())
    }

    /// Stores the decoded bytes of `group` in a file of its own. The caller has verified them.
    /// Blocks on disk I/O.
    pub fn insert(&self, group: &GroupDigest, decoded: &[u8]) -> Insert {
        self.insert_placed(group, None, decoded)
    }

    /// Stores the decoded bytes of `group` in the content at `placement`, or in a file of its own
    /// as a fallback. The caller has verified them. Blocks on disk I/O.
    pub fn insert_placed(
        &self,
        group: &GroupDigest,
        placement: Option<&Placement>,
        decoded: &[u8],
    ) -> Insert {
        if decoded.is_empty() || decoded.len() > GROUP_RAW_LEN_MAX as usize {
            return Insert::Failed(CacheError::Size(decoded.len()));
        }
        let inner = &self.inner;
        if !inner.health.may_write() {
            return Insert::Paused;
        }
        // A file that cannot become whole within the budget is stored as groups, so that parts of
        // it can be evicted.
        let placement = placement.filter(|to| inner.may_be_whole(to.content()));
        let stored = match placement.map(|to| inner.store_pieces(to, group, decoded)) {
            None | Some(Ok(Stored::Elsewhere)) if self.contains(group) => Ok(Stored::Before),
            None | Some(Ok(Stored::Elsewhere)) => inner.store_group(group, decoded),
            Some(stored) => stored,
        };
        inner.inserted(stored, decoded.len() as u64)
    }

    /// Evicts the least recently used files until the cache uses at most `target` bytes, or nothing
    /// more can be evicted. Blocks on disk I/O.
    pub fn prune(&self, target: u64, spare: Spare) -> Result<Evicted, CacheError> {
        self.inner.evict_to(target, spare).map_err(CacheError::io("pruning", &self.inner.dir))
    }

    /// Verifies all files and removes damaged ones. Calls `progress` with the bytes of each file.
    /// Blocks on disk I/O.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Verified, CacheError> {
        self.inner.verify(progress)
    }

    /// Probes whether the disk accepts writes now, by writing and syncing 4 KiB.
    pub fn probe(&self) -> DiskState {
        let write = || {
            let (_staged, file) = self.inner.staging.create(&self.inner.disk)?;
            self.inner.disk.write(&file, &[0; 4096], 0)?;
            self.inner.disk.sync(&file)
        };
        match write() {
            Ok(()) => DiskState::Good,
            Err(_) => DiskState::Failing,
        }
    }

    /// Stats every file of the cache. Blocks on disk I/O.
    pub fn inventory(&self) -> Result<Inventory, CacheError> {
        self.inner.scan(&mut |_| ()).map_err(CacheError::io("measuring", &self.inner.dir))
    }

    /// Exempts the files that a snapshot needs from eviction, until it is unpinned.
    pub fn pin(&self, snapshot: &SnapshotId, needs: &PinSet) -> Result<(), CacheError> {
        let inner = &self.inner;
        let failed = CacheError::io("pinning in", &inner.dir);
        let staged = inner.staging.name(&inner.disk);
        let pin = || {
            let _alone = inner.eviction_lock()?;
            pins::write(&*inner.disk, &inner.dir, staged.path(), snapshot, needs)
        };
        pin().map_err(failed)
    }

    /// Removes a pin. Returns false if the snapshot was not pinned.
    pub fn unpin(&self, snapshot: &SnapshotId) -> Result<bool, CacheError> {
        pins::remove(&*self.inner.disk, &self.inner.dir, snapshot)
            .map_err(CacheError::io("unpinning in", &self.inner.dir))
    }

    /// Returns the pinned snapshots.
    pub fn pins(&self) -> Result<Vec<SnapshotId>, CacheError> {
        pins::list(&self.inner.dir).map_err(CacheError::io("reading the pins of", &self.inner.dir))
    }

    /// Returns the configured budget.
    pub fn budget(&self) -> Budget {
        self.inner.room.budget()
    }

    /// Returns the high and low marks of eviction, in bytes.
    pub fn marks(&self) -> (u64, u64) {
        (self.inner.room.high(), self.inner.room.low())
    }

    /// Blocks until all queued sealing, copying and eviction is done.
    pub fn settle(&self) {
        self.inner.worker.settle();
    }

    /// Recounts, like eviction does after a disk error.
    #[cfg(test)]
    pub(super) fn recount_now(&self) {
        self.inner.recount().unwrap();
    }

    /// Returns statistics since the cache was opened.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            disk_bytes: self.inner.room.displayed_usage(),
            budget_bytes: self.inner.room.limit(),
            disk: self.inner.health.disk(),
            ..self.inner.counters.stats()
        }
    }
}

/// Exempts a content from eviction by this process until dropped.
#[derive(Debug)]
pub struct ContentPin {
    inner: Arc<CacheInner>,
    digest: Digest,
}

impl Drop for ContentPin {
    fn drop(&mut self) {
        self.inner.contents.release(&self.digest);
    }
}

impl CacheInner {
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether a content is small enough, relative to the budget, to be kept as one file.
    fn may_be_whole(&self, content: &ContentId) -> bool {
        content.size <= self.room.low() / 2
    }

    /// Records a failed disk operation, and schedules a recount.
    pub(super) fn write_failed(&self) {
        count(&self.counters.write_failures);
        self.suspect.store(true, Ordering::Relaxed);
    }

    fn counted(&self, lookup: Lookup) -> Lookup {
        count(match lookup {
            Lookup::Hit => &self.counters.hits,
            Lookup::Miss => &self.counters.misses,
        });
        lookup
    }

    fn read_group(&self, group: &GroupDigest, offset: u32, buf: &mut [u8]) -> Lookup {
        let found = self.entry(group).filter(|entry| entry.covers(offset, buf.len()));
        let Some(entry) = found else { return Lookup::Miss };
        match entry.read(&*self.disk, offset, buf) {
            Ok(()) => Lookup::Hit,
            Err(error) => {
                self.read_failed(group, &entry, &error);
                Lookup::Miss
            }
        }
    }

    /// Updates counters and health after a write, and requests an eviction if necessary.
    fn inserted(&self, stored: Result<Stored, CacheError>, len: u64) -> Insert {
        let counters = &self.counters;
        match stored {
            Ok(Stored::New) => {
                self.health.succeeded();
                count(&counters.inserted_groups);
                counters.inserted_bytes.fetch_add(len, Ordering::Relaxed);
                if self.room.fill() == Fill::High {
                    self.worker.evict();
                }
                Insert::Stored
            }
            Ok(Stored::Before) => Insert::AlreadyThere,
            Ok(Stored::NoRoom | Stored::Elsewhere) => {
                count(&counters.refused_full);
                self.worker.evict();
                Insert::Full
            }
            Err(error) => {
                if error.is_disk_full() {
                    self.starved.store(true, Ordering::Relaxed);
                    self.worker.evict();
                }
                self.health.failed(&error);
                self.write_failed();
                Insert::Failed(error)
            }
        }
    }

    /// Copies the bytes of a group file into a content that they belong to.
    pub(super) fn adopt(&self, group: &GroupDigest, placement: &Placement) {
        if !self.health.may_write() {
            return;
        }
        let Some(entry) = self.entry(group) else { return };
        let mut decoded = vec![0; entry.len() as usize];
        if let Err(error) = entry.read(&*self.disk, 0, &mut decoded) {
            return self.read_failed(group, &entry, &error);
        }
        // On `Elsewhere`, the bytes stay in the group file only.
        let stored = self.store_pieces(placement, group, &decoded);
        if !matches!(stored, Ok(Stored::Elsewhere)) {
            self.inserted(stored, decoded.len() as u64);
        }
    }
}
