//! The recordings under way, and all that they can see.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use inlay_store::ids::SnapshotId;
use parking_lot::{Mutex, RwLock};

use super::buffer::{Buffer, Fetch, Named, Stretch, What};
use super::source::{About, Source};
use super::watch::{StoreWatch, WatchId};
use super::{EVENTS_MAX, RECORDINGS_MAX};
use crate::trace::clock;
use crate::trace::model::{FetchClass, FetchOutcome, SegmentKind};

/// Knows what is read and who records it. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How many recordings there are.
    active: AtomicUsize,
    recordings: RwLock<Vec<Arc<Recording>>>,
    sources: Mutex<Vec<Weak<Source>>>,
    watches: AtomicU32,
}

/// What is to be recorded.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only touches of these snapshots; none: of all.
    pub snapshots: HashSet<SnapshotId>,
    /// How many events are kept, at most [`EVENTS_MAX`].
    pub events: usize,
}

/// A recording.
#[derive(Debug)]
pub struct Recording {
    pub(super) began: u64,
    snapshots: HashSet<SnapshotId>,
    pub(super) buffer: Mutex<Buffer>,
    /// What it has seen reads of, by their places.
    pub(super) sources: Mutex<Vec<Arc<Source>>>,
}

impl Recording {
    /// When it began, in nanoseconds of the monotonic clock.
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

/// Something that was fetched, but is no group.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    /// What.
    pub class: FetchClass,
    /// Of which snapshot.
    pub snapshot: SnapshotId,
    /// When it was asked for, began to come and was there, in nanoseconds; 0: not known.
    pub times: [u64; 3],
    /// Stored bytes.
    pub bytes: u64,
    /// How it ended.
    pub outcome: FetchOutcome,
}

impl Recorder {
    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.inner.active.load(Ordering::Relaxed) > 0
    }

    /// Begins a recording. `None` if there are as many as there may be.
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

    /// Ends a recording. Nothing more comes into it.
    pub fn end(&self, recording: &Arc<Recording>) {
        // Under the same lock as the beginning: no source is added meanwhile.
        let _sources = self.inner.sources.lock();
        let mut recordings = self.inner.recordings.write();
        recordings.retain(|one| !Arc::ptr_eq(one, recording));
        self.inner.active.store(recordings.len(), Ordering::Relaxed);
        drop(recordings);
        for source in recording.sources.lock().iter() {
            source.untap(recording);
        }
    }

    /// A snapshot whose reads may be recorded from now on.
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

    /// What watches the requests to one more store.
    pub fn watch(&self) -> StoreWatch {
        let id = WatchId(self.inner.watches.fetch_add(1, Ordering::Relaxed));
        StoreWatch { id, recorder: self.clone() }
    }

    /// Something with a name happens now.
    pub fn mark(&self, name: &'static str, detail: impl Fn() -> String) {
        if self.is_on() {
            let at = clock::now();
            self.each(|recording| {
                recording.buffer.lock().mark(Named { at, name, detail: detail() });
            });
        }
    }

    /// Something goes on until what is returned is dropped.
    pub fn span(&self, kind: SegmentKind, what: &str) -> Spanning {
        let begun = self.is_on().then(|| (clock::now(), what.to_owned()));
        Spanning { recorder: self.clone(), kind, begun }
    }

    /// Something was fetched.
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

/// Something that goes on.
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
