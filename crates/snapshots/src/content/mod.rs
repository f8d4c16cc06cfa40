//! Reads the contents of a snapshot's files, combining its index, the cache and the fetcher.
//!
//! The kernel side, `inlay cat` and exports all read through here.

mod adapters;
mod error;
mod heuristic;
mod locate;
#[cfg(test)]
mod tests;
mod tracker;
mod wait_stats;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use inlay_fusefs::ContentError;
use inlay_prefetch::{Fetcher, GroupRef, ReadAheadLimits, SequentialReads, StreamId};
use inlay_store::cache::{Cache, ContentId, Lookup, WholeContent};
use inlay_store::format::{GroupIdx, Index, InodeIdx};
use inlay_store::profile::UnitSet;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use error::{damaged_index, fetch_failed};
pub use heuristic::guess;
use inlay_trace::record::{Read, Source};
use inlay_trace::{Tier, clock};
use locate::{Piece, Place, Plan, content_id};
pub use tracker::{Groups, Tracker, TrackerStats};
pub use wait_stats::CacheWaits;

/// Options for reading a snapshot's contents.
#[derive(Debug, Clone, Copy)]
pub struct ContentOptions {
    /// Maximum concurrent reads that wait for the store and hold a buffer; further ones queue.
    /// Default 128.
    pub waiting_reads: usize,
    /// Timeout in this queue, after which a read fails. Default 30 s.
    pub turn: Duration,
    /// Limits of read-ahead for sequential readers; `None` disables it.
    pub read_ahead: Option<ReadAheadLimits>,
}

impl Default for ContentOptions {
    fn default() -> Self {
        Self {
            waiting_reads: 128,
            turn: Duration::from_secs(30),
            read_ahead: Some(ReadAheadLimits::default()),
        }
    }
}

/// Observers of reads.
#[derive(Debug, Clone)]
pub struct Observers {
    /// Records touched groups.
    pub tracker: Arc<Tracker>,
    /// Measures the latency of reads served by this host.
    pub waits: Arc<CacheWaits>,
    /// Records reads for a trace, if enabled.
    pub source: Option<Arc<Source>>,
}

/// Result of a read that does not wait for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// So many bytes at the start of the buffer are filled; fewer than its length only at the end
    /// of the file.
    Filled(usize),
    /// Some data must be fetched; the contents of the buffer are undefined.
    WouldWait,
}

/// Contents of one snapshot's files. Clones share all state.
///
/// The owner must await `shutdown` before the runtime ends. The fetcher is not shut down here: it
/// belongs to its creator.
#[derive(Clone)]
pub struct SnapshotContent {
    inner: Arc<Inner>,
}

struct Inner {
    index: Index,
    cache: Option<Cache>,
    fetcher: Fetcher,
    tracker: Option<Arc<Tracker>>,
    waits: Option<Arc<CacheWaits>>,
    source: Option<Arc<Source>>,
    sequential: Option<Mutex<SequentialReads>>,
    turns: Semaphore,
    options: ContentOptions,
    reads: TaskTracker,
    runtime: Handle,
}

impl SnapshotContent {
    /// Reads the files in `index`. Reads that wait run on `runtime`.
    pub fn new(
        index: Index,
        cache: Option<Cache>,
        fetcher: Fetcher,
        options: ContentOptions,
        runtime: Handle,
    ) -> Self {
        Self::observed(index, cache, fetcher, options, runtime, None)
    }

    /// Like [`SnapshotContent::new`], with `observers` notified of reads.
    pub fn observed(
        index: Index,
        cache: Option<Cache>,
        fetcher: Fetcher,
        options: ContentOptions,
        runtime: Handle,
        observers: Option<Observers>,
    ) -> Self {
        let (tracker, waits, source) =
            observers.map(|to| (Some(to.tracker), Some(to.waits), to.source)).unwrap_or_default();
        let inner = Inner {
            index,
            cache,
            fetcher,
            tracker,
            waits,
            source,
            sequential: options.read_ahead.map(|limits| Mutex::new(SequentialReads::new(limits))),
            turns: Semaphore::new(options.waiting_reads.clamp(1, Semaphore::MAX_PERMITS)),
            options,
            reads: TaskTracker::new(),
            runtime,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Index of the snapshot.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// Fills `buf` from `offset` of the regular file `inode`, if all the data is on this host.
    /// Never waits for the network.
    pub fn read_now(
        &self,
        inode: InodeIdx,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<Now, ContentError> {
        let inner = &self.inner;
        let traced = inner.source.as_deref().and_then(|source| source.begins(inode));
        let timed = inner.waits.as_deref().and_then(CacheWaits::begin);
        let content = content_id(&inner.index, inode).map_err(|error| damaged_index(&error))?;
        if let Some(len) = content.and_then(|content| inner.read_whole(&content, offset, buf)) {
            timed.inspect(wait_stats::Timed::end);
            if let Some(tracker) = inner.tracker.as_deref().filter(|tracker| tracker.is_recording())
            {
                tracker.touch_file(&inner.index, inode, offset..offset.saturating_add(len as u64));
            }
            inner.record_answer(inode, offset, len, traced);
            return Ok(Now::Filled(len));
        }
        let plan = Plan::new(&inner.index, inode, offset, buf.len())
            .map_err(|error| damaged_index(&error))?;
        for piece in &plan.pieces {
            let Some(to) = buf.get_mut(piece.to.clone()) else { continue };
            if !inner.copy_here(content.as_ref(), piece, to) {
                return Ok(Now::WouldWait);
            }
        }
        plan.clear_holes(buf);
        if plan.pieces.iter().any(|piece| matches!(piece.from, Place::Group { .. })) {
            timed.inspect(wait_stats::Timed::end);
        }
        inner.record_answer(inode, offset, plan.len, traced);
        inner.touch(&plan);
        inner.read_ahead(inode, offset, &plan);
        Ok(Now::Filled(plan.len))
    }

    /// Reads `len` bytes from `offset` of the regular file `inode`, fewer at its end. Fetches all
    /// missing groups concurrently.
    pub async fn read(
        &self,
        inode: InodeIdx,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, ContentError> {
        let inner = &self.inner;
        let source = inner.source.as_deref().filter(|source| source.is_on());
        let traced = source.map(|source| (source, clock::now()));
        let Ok(turn) = timeout(inner.options.turn, inner.turns.acquire()).await else {
            return Err(ContentError::Timeout { object: "a turn to read from the store".into() });
        };
        let _turn = turn.map_err(|_| ContentError::Shutdown)?;
        let content = content_id(&inner.index, inode).map_err(|error| damaged_index(&error))?;
        let plan = Plan::new(&inner.index, inode, offset, len as usize)
            .map_err(|error| damaged_index(&error))?;
        let mut buf = vec![0; plan.len];
        let mut missing: Vec<&Piece> = Vec::new();
        for piece in &plan.pieces {
            let Some(to) = buf.get_mut(piece.to.clone()) else { continue };
            if !inner.copy_here(content.as_ref(), piece, to) {
                // The fetched data overwrites any remains of the failed copy.
                missing.push(piece);
            }
        }
        let pending = traced.map(|(source, at)| {
            let groups: Vec<GroupIdx> = missing.iter().filter_map(|piece| piece.group()).collect();
            source.waits(Read { inode, offset, bytes: len }, at, &groups)
        });
        inner.touch(&plan);
        inner.read_ahead(inode, offset, &plan);
        let fetched = inner.fetch(inode, &missing, &mut buf).await;
        if let Some(pending) = pending {
            pending.end();
        }
        fetched?;
        Ok(Bytes::from(buf))
    }

    /// Returns the cache file with the contents of `inode`, if the cache has all of them. Cheap;
    /// does not block.
    pub fn whole(&self, inode: InodeIdx) -> Option<(WholeContent, ContentId)> {
        let content = content_id(&self.inner.index, inode).ok()??;
        let whole = self.inner.cache.as_ref()?.whole(&content.digest, content.size)?;
        if let Some(tracker) = &self.inner.tracker {
            // The kernel's own reads of the file are not observed.
            tracker.opened(inode);
        }
        Some((whole, content))
    }

    /// Waits for all reads started by an adapter. Shut the fetcher down first, so that they end
    /// immediately.
    pub async fn shutdown(&self) {
        self.inner.reads.close();
        self.inner.reads.wait().await;
    }
}

impl Inner {
    /// Fills `buf` from a file that the cache has completely; `None` otherwise.
    fn read_whole(&self, content: &ContentId, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let left = usize::try_from(content.size.checked_sub(offset)?).unwrap_or(usize::MAX);
        let to = buf.get_mut(..left.min(buf.len()))?;
        (self.cache.as_ref()?.read_whole(content, offset, to) == Lookup::Hit).then_some(to.len())
    }

    /// Copies a piece from the index, the cache or memory. Returns false if it is in none of them.
    fn copy_here(&self, content: Option<&ContentId>, piece: &Piece, to: &mut [u8]) -> bool {
        match &piece.from {
            Place::Index(bytes) => {
                let same = bytes.len() == to.len();
                if same {
                    to.copy_from_slice(bytes);
                }
                same
            }
            Place::Group { blob, group, extent, skip, .. } => {
                let digest = &group.digest;
                let offset = Place::group_offset(extent, *skip);
                let cached = |cache: &Cache, to: &mut [u8]| {
                    Lookup::Hit
                        == match content {
                            Some(content) => cache.read_piece(content, digest, extent, *skip, to),
                            None => cache.read(digest, offset, to),
                        }
                };
                let cache = self.cache.as_ref();
                let in_memory = |to: &mut [u8]| {
                    let want = GroupRef { blob: *blob, group: *group, home: None };
                    let decoded = self.fetcher.here(&want);
                    decoded.is_some_and(|decoded| copy_part(&decoded, offset, to))
                };
                let has = |cache: &Cache| match content {
                    Some(content) => cache.has_piece(content, digest, extent),
                    None => cache.contains(digest),
                };
                cache.is_some_and(|cache| cached(cache, to))
                    || in_memory(to)
                    // Between the two lookups it may have moved from memory to the cache.
                    || cache.is_some_and(|cache| has(cache) && cached(cache, to))
            }
        }
    }

    /// Records a read that began at `at` and was served by this host.
    fn record_answer(&self, inode: InodeIdx, offset: u64, len: usize, at: Option<u64>) {
        if let (Some(source), Some(at)) = (&self.source, at) {
            let bytes = u32::try_from(len).unwrap_or(u32::MAX);
            source.answered(Read { inode, offset, bytes }, Tier::Cache, at);
        }
    }

    fn touch(&self, plan: &Plan) {
        let Some(tracker) = &self.tracker else { return };
        for piece in &plan.pieces {
            if let Place::Group { number, group, extent, skip, .. } = &piece.from {
                let start = Place::group_offset(extent, *skip);
                let len = u32::try_from(piece.to.len()).unwrap_or(u32::MAX);
                let units = UnitSet::of(start..start.saturating_add(len));
                tracker.touch(&self.index, *number, group, units);
            }
        }
    }

    async fn fetch(
        &self,
        inode: InodeIdx,
        missing: &[&Piece],
        buf: &mut [u8],
    ) -> Result<(), ContentError> {
        let mut wants: Vec<GroupRef> = Vec::new();
        for piece in missing {
            let Place::Group { blob, group, extent, .. } = &piece.from else { continue };
            if wants.iter().any(|want| want.group == *group) {
                continue;
            }
            let home = locate::home(&self.index, inode, group, extent.file_offset)
                .map_err(|error| damaged_index(&error))?;
            wants.push(GroupRef { blob: *blob, group: *group, home });
        }
        if wants.is_empty() {
            return Ok(());
        }
        let decoded = self.fetcher.groups(&wants).await.map_err(|error| fetch_failed(&error))?;
        for piece in missing {
            let Place::Group { group, extent, skip, .. } = &piece.from else { continue };
            let whole = wants.iter().zip(&decoded).find(|(want, _)| want.group == *group);
            let offset = Place::group_offset(extent, *skip);
            let copied = match (whole, buf.get_mut(piece.to.clone())) {
                (Some((_, whole)), Some(to)) => copy_part(whole, offset, to),
                _ => false,
            };
            if !copied {
                return Err(ContentError::Corrupt {
                    object: format!("group {}", group.digest),
                    why: "it is shorter than the index says".into(),
                });
            }
        }
        Ok(())
    }

    fn read_ahead(&self, inode: InodeIdx, offset: u64, plan: &Plan) {
        let Some(sequential) = &self.sequential else { return };
        let stream = StreamId(u64::from(inode.0));
        let len = plan.len as u64;
        let range = sequential.lock().read(stream, offset, len, plan.file_len);
        let Some(range) = range else { return };
        match locate::groups_within(&self.index, inode, range) {
            Ok(wants) => self.fetcher.read_ahead(wants),
            // A read of these bytes will report the error.
            Err(error) => tracing::debug!(%error, "read-ahead is off"),
        }
    }
}

fn copy_part(decoded: &Bytes, offset: u32, to: &mut [u8]) -> bool {
    let start = offset as usize;
    let part = start.checked_add(to.len()).and_then(|end| decoded.get(start..end));
    match part {
        Some(part) => {
            to.copy_from_slice(part);
            true
        }
        None => false,
    }
}
