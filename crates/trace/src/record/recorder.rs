//! Manages the active recordings and their sources.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use inlay_store::ids::SnapshotId;
use parking_lot::{Mutex, RwLock};

use super::buffer::{Buffer, Fetch, Named, Stretch, What};
use super::source::{About, Source};
use super::watch::{StoreWatch, WatchId};
use super::{EVENTS_MAX, RECORDINGS_MAX};
use crate::clock;
use crate::model::{FetchClass, FetchOutcome, SegmentKind};

/// Registry of sources and recordings. Clones share all state.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    inner: Arc<Inner>,
}

/// Lock order: `sources`, `recordings`, a recording's `sources`, a source's `taps`, a buffer.
#[derive(Debug, Default)]
struct Inner {
    /// Number of active recordings.
    active: AtomicUsize,
    recordings: RwLock<Vec<Arc<Recording>>>,
    sources: Mutex<Vec<Weak<Source>>>,
    watches: AtomicU32,
}

/// Parameters of a recording.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Restricts touches to these snapshots; empty for all.
    pub snapshots: HashSet<SnapshotId>,
    /// Maximum events, at most [`EVENTS_MAX`].
    pub events: usize,
}

/// A recording.
#[derive(Debug)]
pub struct Recording {
    pub(super) began: u64,
    snapshots: HashSet<SnapshotId>,
    pub(super) buffer: Mutex<Buffer>,
    /// Sources, by their positions.
    pub(super) sources: Mutex<Vec<Arc<Source>>>,
}

impl Recording {
    /// Start time in nanoseconds of the monotonic clock.
    pub fn began_ns(&self) -> u64 {
        self.began
    }

    fn wants(&self, source: &Source) -> bool {
        self.snapshots.is_empty() || self.snapshots.contains(&source.about.snapshot)
    }

    fn take(self: &Arc<Self>, source: &Arc<Source>) {
        if !self.wants(source) {
            return;
        }
        let mut sources = self.sources.lock();
        let Ok(place) = u32::try_from(sources.len()) else { return };
        source.tap(self, place);
        sources.push(Arc::clone(source));
    }
}

/// A fetch of something other than groups.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    /// Class of the fetch.
    pub class: FetchClass,
    /// Snapshot it belongs to.
    pub snapshot: SnapshotId,
    /// Times of request, first byte and completion, in nanoseconds; 0 if unknown.
    pub times: [u64; 3],
    /// Stored bytes.
    pub bytes: u64,
    /// Outcome.
    pub outcome: FetchOutcome,
}

impl Recorder {
    /// Whether a recording is active.
    pub fn is_on(&self) -> bool {
        self.inner.active.load(Ordering::Relaxed) > 0
    }

    /// Begins a recording. `None` if [`RECORDINGS_MAX`] are active.
    pub fn begin(&self, wanted: Wanted) -> Option<Arc<Recording>> {
        let mut sources = self.inner.sources.lock();
        let mut recordings = self.inner.recordings.write();
        if recordings.len() >= RECORDINGS_MAX {
            return None;
        }
        let recording = Arc::new(Recording {
            began: clock::now(),
            snapshots: wanted.snapshots,
            buffer: Mutex::new(Buffer::new(wanted.events.clamp(1, EVENTS_MAX))),
            sources: Mutex::default(),
        });
        recordings.push(Arc::clone(&recording));
        self.inner.active.store(recordings.len(), Ordering::Relaxed);
        drop(recordings);
        sources.retain(|source| source.strong_count() > 0);
        for source in sources.iter().filter_map(Weak::upgrade) {
            recording.take(&source);
        }
        Some(recording)
    }

    /// Ends a recording. It receives no further events.
    pub fn end(&self, recording: &Arc<Recording>) {
        // Hold the same lock as `begin`, so that no source is added concurrently.
        let _sources = self.inner.sources.lock();
        let mut recordings = self.inner.recordings.write();
        recordings.retain(|one| !Arc::ptr_eq(one, recording));
        self.inner.active.store(recordings.len(), Ordering::Relaxed);
        drop(recordings);
        for source in recording.sources.lock().iter() {
            source.untap(recording);
        }
    }

    /// Registers a snapshot as a source of reads.
    pub fn source(&self, about: About) -> Arc<Source> {
        let source = Arc::new(Source::new(about));
        let mut sources = self.inner.sources.lock();
        sources.retain(|source| source.strong_count() > 0);
        sources.push(Arc::downgrade(&source));
        for recording in self.inner.recordings.read().iter() {
            recording.take(&source);
        }
        source
    }

    /// Returns a watch for the requests to one more store.
    pub fn watch(&self) -> StoreWatch {
        let id = WatchId(self.inner.watches.fetch_add(1, Ordering::Relaxed));
        StoreWatch { id, recorder: self.clone() }
    }

    /// Records a mark at the current time. Calls `detail` only if a recording is active.
    pub fn mark(&self, name: &'static str, detail: impl Fn() -> String) {
        if self.is_on() {
            let at = clock::now();
            self.each(|recording| {
                recording.buffer.lock().mark(Named { at, name, detail: detail() });
            });
        }
    }

    /// Records a span that ends when the returned guard is dropped.
    pub fn span(&self, kind: SegmentKind, what: &str) -> Spanning {
        let begun = self.is_on().then(|| (clock::now(), what.to_owned()));
        Spanning { recorder: self.clone(), kind, begun }
    }

    /// Records a fetch of something other than groups.
    pub fn fetched(&self, fetched: &Fetched) {
        let Fetched { class, snapshot, times: [sent, first_byte, received], bytes, outcome } =
            *fetched;
        self.each(|recording| {
            recording.buffer.lock().fetched(Fetch {
                watch: WatchId(u32::MAX),
                class,
                queued: 0,
                sent,
                first_byte,
                received,
                ready: received,
                bytes,
                outcome,
                what: What::Of(snapshot),
            });
        });
    }

    pub(super) fn each(&self, tell: impl Fn(&Recording)) {
        self.inner.recordings.read().iter().for_each(|recording| tell(recording));
    }
}

/// Guard of an open span.
#[derive(Debug)]
pub struct Spanning {
    recorder: Recorder,
    kind: SegmentKind,
    begun: Option<(u64, String)>,
}

impl Drop for Spanning {
    fn drop(&mut self) {
        let Some((from, what)) = self.begun.take() else { return };
        let (to, kind) = (clock::now(), self.kind);
        self.recorder.each(|recording| {
            let span = Stretch { from: from.max(recording.began), to, kind, what: what.clone() };
            recording.buffer.lock().span(span);
        });
    }
}
