//! The bytes of a snapshot's files: its index, the cache and the fetcher joined.
//!
//! The kernel's adapter, `inlay cat` and export all read through here.

mod adapters;
mod error;
mod guess;
mod pieces;
#[cfg(test)]
mod tests;
mod tracker;
mod waits;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use inlay_fusefs::ContentError;
use inlay_prefetch::{Fetcher, GroupRef, ReadAheadLimits, SequentialReads, StreamId};
use inlay_store::cache::{Cache, ContentId, Lookup, WholeContent};
use inlay_store::format::{GroupIdx, Index, InodeIdx};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::trace::record::{Read, Source};
use crate::trace::{Tier, clock};
use error::{damaged_index, fetch_failed};
pub use guess::guess;
use pieces::{Piece, Place, Plan, content_id};
pub use tracker::{Groups, Tracker, TrackerFigures};
pub use waits::CacheWaits;

/// How a snapshot's contents are read.
#[derive(Debug, Clone, Copy)]
pub struct ContentOptions {
    /// Reads that wait for the store and hold a buffer at once; more wait for their turn.
    /// Default 128.
    pub waiting_reads: usize,
    /// How long a read waits for its turn before it fails. Default 30 s.
    pub turn: Duration,
    /// How far sequential readers are read ahead of; `None`: not at all.
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

/// Who is told of reads.
#[derive(Debug, Clone)]
pub struct Observers {
    /// What is touched.
    pub tracker: Arc<Tracker>,
    /// How long reads take that this host can answer.
    pub waits: Arc<CacheWaits>,
    /// Who records it, if anybody may.
    pub source: Option<Arc<Source>>,
}

/// Whether bytes are on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// The first so many bytes of the buffer are filled: fewer than it holds only at the file's end.
    Filled(usize),
    /// Something has to be fetched; the buffer's contents mean nothing.
    WouldWait,
}

/// The contents of one snapshot's files. Clones share everything.
///
/// `shutdown` must be awaited before the runtime ends. The fetcher belongs to whoever made it.
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
    /// The contents of the files in `index`. Reads that wait run on `runtime`.
    pub fn new(
        index: Index,
        cache: Option<Cache>,
        fetcher: Fetcher,
        options: ContentOptions,
        runtime: Handle,
    ) -> Self {
        Self::observed(index, cache, fetcher, options, runtime, None)
    }

    /// The same, and `observers` are told of what is read.
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

    /// The snapshot's index.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// Fills `buf` with the bytes of the regular file `inode` from `offset`, if all of them are on
    /// this host. Never waits for the network.
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
            timed.inspect(waits::Timed::end);
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
            timed.inspect(waits::Timed::end);
        }
        inner.record_answer(inode, offset, plan.len, traced);
        inner.touch(&plan);
        inner.read_ahead(inode, offset, &plan);
        Ok(Now::Filled(plan.len))
    }

    /// The bytes of the regular file `inode` from `offset`: `len`, or fewer at the file's end. What
    /// is missing is fetched, all of it at once.
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
                // What the failed copy left is written over below.
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

    /// The cache's own file of the contents of `inode`, if it has all of them. Cheap; waits for
    /// nothing.
    pub fn whole(&self, inode: InodeIdx) -> Option<(WholeContent, ContentId)> {
        let content = content_id(&self.inner.index, inode).ok()??;
        let whole = self.inner.cache.as_ref()?.whole(&content.digest, content.size)?;
        if let Some(tracker) = &self.inner.tracker {
            // What the kernel reads of it by itself is not seen.
            tracker.opened(inode);
        }
        Some((whole, content))
    }

    /// Waits until every read that was started by an adapter has ended. Shut the fetcher down
    /// first, so that they end at once.
    pub async fn shutdown(&self) {
        self.inner.reads.close();
        self.inner.reads.wait().await;
    }
}

impl Inner {
    /// Fills `buf` from a file that is whole in the cache. `None` if it is not.
    fn read_whole(&self, content: &ContentId, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let left = usize::try_from(content.size.checked_sub(offset)?).unwrap_or(usize::MAX);
        let to = buf.get_mut(..left.min(buf.len()))?;
        (self.cache.as_ref()?.read_whole(content, offset, to) == Lookup::Hit).then_some(to.len())
    }

    /// Copies a piece that is in the index, the cache or memory. False if it is not.
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
                    // From memory it may have gone to the cache between the two looks.
                    || cache.is_some_and(|cache| has(cache) && cached(cache, to))
            }
        }
    }

    /// A read that began `at` was answered from this host.
    fn record_answer(&self, inode: InodeIdx, offset: u64, len: usize, at: Option<u64>) {
        if let (Some(source), Some(at)) = (&self.source, at) {
            let bytes = u32::try_from(len).unwrap_or(u32::MAX);
            source.answered(Read { inode, offset, bytes }, Tier::Cache, at);
        }
    }

    fn touch(&self, plan: &Plan) {
        let Some(tracker) = &self.tracker else { return };
        for piece in &plan.pieces {
            if let Place::Group { number, group, .. } = &piece.from {
                tracker.touch(&self.index, *number, group);
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
            let home = pieces::home(&self.index, inode, group, extent.file_offset)
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
        match pieces::groups_within(&self.index, inode, range) {
            Ok(wants) => self.fetcher.read_ahead(wants),
            // Whoever reads these bytes gets the error.
            Err(error) => tracing::debug!(%error, "nothing is read ahead"),
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
