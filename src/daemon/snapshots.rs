//! Attaches each snapshot once, shared by all its mounts, and detaches it when its last user is
//! gone.

mod adopted;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use inlay_base::inject::{self, Step};
use inlay_base::record::RecordError;
use inlay_fusefs::{Findings, HostError, OwnerAlias, Parts, Renumber, Slot, SnapshotFs, View};
use inlay_mounts::{Alias, Owner};
use inlay_snapshots::content::SnapshotContent;
use inlay_snapshots::state::State;
use inlay_snapshots::{IndexFetch, SnapshotError, findings, open_index_watched};
use inlay_store::format::{Attr, Index, InodeIdx};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::Remote;
use inlay_trace::record::{Fetched, Recorder};
use inlay_trace::{FetchClass, FetchOutcome, SegmentKind};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_util::task::TaskTracker;

use super::api::{AttachedSnapshot, CacheUse, LoadOptions, LoadingStatus, Part, StoreRef};
use super::attached_records::{AttachKey, AttachedFiles};
use super::error::DaemonError;
use super::metrics::Loaded;
use super::name_cache::named;
use super::server::Server;
use super::service::Attach;
use super::stores::{Store, Stores};
use super::tracking::{Begins, Early, Tracking, Trackings};

/// Limit of attached snapshots.
const ATTACHED_MAX: usize = 16_384;

/// First and last interval between probes of whether a detached snapshot is still in use. The
/// interval doubles with each probe.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_LAST: Duration = Duration::from_secs(10);

/// All attached snapshots. Clones share state.
#[derive(Clone)]
pub(super) struct Snapshots {
    inner: Arc<SnapshotsInner>,
}

struct SnapshotsInner {
    server: Server,
    stores: Stores,
    state: State,
    files: AttachedFiles,
    runtime: Handle,
    tasks: TaskTracker,
    trackings: Trackings,
    /// Woken when a slot is forgotten.
    changed: Arc<Notify>,
    /// Per-key lock: the task that attaches a snapshot holds it; concurrent requests wait and share
    /// the result.
    uses: Mutex<HashMap<AttachKey, Arc<AsyncMutex<Weak<Use>>>>>,
    serving: Mutex<HashMap<u32, Serving>>,
    /// Slots with damaged files when this daemon started.
    damaged: Mutex<Vec<(u32, RecordError)>>,
}

/// State of a slot until the kernel has forgotten it.
struct Serving {
    /// `None` if its file is damaged.
    key: Option<AttachKey>,
    /// `None` until the first request, if an earlier daemon attached the slot.
    open: Option<OpenSlot>,
    /// Set once detached: when to probe next whether the slot is still in use.
    ending: Option<Look>,
}

/// A slot that is open.
struct OpenSlot {
    content: SnapshotContent,
    store: Arc<Store>,
    tracking: Arc<Tracking>,
}

/// Time of the next probe, and the interval after it.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    pause: Duration,
}

/// How an attached snapshot is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Mounted directly.
    Alone,
    /// As a lower layer of an overlay, which can combine two parts.
    Below,
}

/// A resolved reference and the slots that show its snapshot.
pub(super) struct Attached {
    pub(super) snapshot: SnapshotId,
    pub(super) top: Arc<Use>,
    /// The files that `top` does not show.
    pub(super) below: Option<Arc<Use>>,
    /// Length of the snapshot's longest path in bytes, if it is a lower layer of an overlay.
    pub(super) longest_path: u32,
    /// Renumbering of the owner of the root directory; none if owners are as in the snapshot.
    pub(super) alias: Option<Alias>,
}

/// Keeps a snapshot attached until dropped.
pub(super) struct Use {
    inner: Weak<SnapshotsInner>,
    slot: Slot,
}

/// Keeps slots attached, by slot number.
pub(super) type Uses = HashMap<u32, Arc<Use>>;

impl Use {
    pub(super) fn slot(&self) -> Slot {
        self.slot
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            SnapshotsInner::detach(&inner, self.slot);
        }
    }
}

impl Snapshots {
    pub(super) fn new(
        server: Server,
        stores: Stores,
        state: State,
        files: AttachedFiles,
        runtime: Handle,
        changed: Arc<Notify>,
    ) -> Self {
        let tasks = TaskTracker::new();
        let recorder = stores.recorder().clone();
        let inner = SnapshotsInner {
            server,
            stores,
            state,
            files,
            trackings: Trackings::new(runtime.clone(), tasks.clone(), recorder),
            runtime,
            tasks,
            changed,
            uses: Mutex::default(),
            serving: Mutex::default(),
            damaged: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Resolves and attaches `wanted` as `shape` requires.
    pub(super) async fn attach(
        &self,
        wanted: Attach<'_>,
        shape: Shape,
    ) -> Result<Attached, DaemonError> {
        let Attach { snapshot: reference, store, cache, load, origin, chown } = wanted;
        let inner = &self.inner;
        let opened = inner.stores.get(store, cache)?;
        let _span = self.recorder().span(SegmentKind::Attach, reference);
        let _mounting = opened.mounting();
        let snapshot = named(&inner.state, &opened.remote, store, reference, origin).await?;
        self.recorder().mark("resolved", || format!("{reference} is {snapshot}"));
        // The profile is fetched concurrently with the index.
        let mut early = Some(inner.trackings.fetch(&opened.remote, snapshot, load));
        let (top, below, longest_path) = inner.parts(&opened, snapshot, shape).await?;
        let alias = inner.alias(&opened.remote, snapshot, chown).await?;
        let key = |part| AttachKey { snapshot, store: store.clone(), cache, part, alias };
        let top = self.attach_part(key(top), &opened, load, &mut early).await?;
        let below = match below {
            Some(part) => Some(self.attach_part(key(part), &opened, load, &mut early).await?),
            None => None,
        };
        if snapshot.to_string() != reference {
            inner.call(top.slot(), reference);
        }
        self.recorder().mark("attached", || reference.to_owned());
        Ok(Attached { snapshot, top, below, longest_path, alias })
    }

    async fn attach_part(
        &self,
        key: AttachKey,
        opened: &Arc<Store>,
        load: &LoadOptions,
        early: &mut Option<Early>,
    ) -> Result<Arc<Use>, DaemonError> {
        let inner = &self.inner;
        let cell = inner.cell(&key);
        let mut current = cell.lock().await;
        if let Some(shared) = current.upgrade() {
            return Ok(shared);
        }
        if inner.serving.lock().len() >= ATTACHED_MAX {
            return Err(DaemonError::Request(format!(
                "{ATTACHED_MAX} snapshots are attached, which is as many as there may be; \
                 unmount something"
            )));
        }
        let index = inner.index(&opened.remote, key.snapshot).await?;
        let view = inner.view(&key);
        let (open, fs) = inner.open(opened, index, &key, load, Begins::Now, early.take(), view);
        let tracking = Arc::clone(&open.tracking);
        let slot = inner.server.attach(fs).inspect_err(|_| tracking.leave())?;
        let serving = Serving { key: Some(key.clone()), open: Some(open), ending: None };
        inner.serving.lock().insert(slot.get(), serving);
        let made = Arc::new(Use { inner: Arc::downgrade(inner), slot });
        let injected = |step| {
            inject::point(step).map_err(DaemonError::io("attach a snapshot in", inner.state.root()))
        };
        injected(Step::SlotAttached)?;
        // Recorded before anything can be mounted: the next daemon must be able to serve the slot.
        inner.files.add(slot.get(), &key, load)?;
        injected(Step::SlotRecorded)?;
        *current = Arc::downgrade(&made);
        Ok(made)
    }

    /// Resolves the reference of `wanted`.
    pub(super) async fn named(&self, wanted: Attach<'_>) -> Result<SnapshotId, DaemonError> {
        let Attach { snapshot: reference, store, cache, origin, .. } = wanted;
        let opened = self.inner.stores.get(store, cache)?;
        named(&self.inner.state, &opened.remote, store, reference, origin).await
    }

    /// Returns the directory at which the slot is visible.
    pub(super) fn dir(&self, slot: Slot) -> Result<PathBuf, DaemonError> {
        self.inner.server.dir(slot)
    }

    /// Lists attached snapshots by slot, without those with damaged files.
    pub(super) fn list(&self) -> Vec<AttachedSnapshot> {
        let serving = self.inner.serving.lock();
        let mut shown: Vec<AttachedSnapshot> = serving
            .iter()
            .filter_map(|(slot, serving)| {
                let key = serving.key.as_ref()?;
                Some(AttachedSnapshot {
                    slot: *slot,
                    snapshot: key.snapshot,
                    store: key.store.clone(),
                    cache: key.cache,
                    part: key.part,
                    chown: key.alias.map(|alias| alias.to),
                    ending: serving.ending.is_some(),
                })
            })
            .collect();
        shown.sort_by_key(|shown| shown.slot);
        shown
    }

    /// Returns the prefetch progress of each snapshot.
    pub(super) fn loading(&self) -> Vec<LoadingStatus> {
        self.inner.trackings.list()
    }

    /// Returns prefetch totals, and the numbers of starts recorded and failed to record.
    pub(super) fn starts(&self) -> (Loaded, (u64, u64)) {
        self.inner.trackings.totals()
    }

    /// The state directory, which holds cached indexes.
    pub(super) fn state(&self) -> &State {
        &self.inner.state
    }

    /// Returns the image configuration stored in the snapshot's index; `None` if it has none.
    pub(super) async fn image_config(
        &self,
        snapshot: SnapshotId,
        store: &StoreRef,
        cache: CacheUse,
    ) -> Result<Option<Vec<u8>>, DaemonError> {
        let opened = self.inner.stores.get(store, cache)?;
        let index = self.inner.index(&opened.remote, snapshot).await?;
        let config = index.config();
        Ok((!config.is_empty()).then(|| config.to_vec()))
    }

    /// Returns the errors of slots that can't be served.
    pub(super) fn damaged(&self) -> Vec<String> {
        let damaged = self.inner.damaged.lock();
        // A repaired file takes effect with the next request.
        let still = damaged.iter().filter(|(slot, _)| self.inner.files.read(*slot).is_err());
        still.map(|(_, error)| error.to_string()).collect()
    }

    /// The FUSE server.
    pub(super) fn server(&self) -> &Server {
        &self.inner.server
    }

    /// Recorder of reads and requests.
    pub(super) fn recorder(&self) -> &Recorder {
        self.inner.stores.recorder()
    }

    /// Open stores.
    pub(super) fn stores(&self) -> &Stores {
        &self.inner.stores
    }

    /// Saves the recordings of starts that are over.
    pub(super) fn end_runs(&self) {
        self.inner.trackings.end_runs();
    }

    /// Number of attached snapshots, including detached ones that are still in use.
    pub(super) fn count(&self) -> usize {
        self.inner.serving.lock().len()
    }

    /// Probes detached snapshots that are due and forgets those no longer in use. Blocks. Returns
    /// the time until the next probe.
    pub(super) fn sweep(&self) -> Option<Duration> {
        let inner = &self.inner;
        let now = Instant::now();
        let due: Vec<u32> = {
            let mut serving = inner.serving.lock();
            let ending = serving.iter_mut().filter_map(|(slot, serving)| {
                let look = serving.ending.as_mut().filter(|look| look.at <= now)?;
                look.pause = (look.pause * 2).min(LOOK_LAST);
                look.at = now + look.pause;
                Some(*slot)
            });
            ending.collect()
        };
        for slot in due.into_iter().filter_map(Slot::new) {
            if let Err(error) = inner.server.let_go_if_unused(slot) {
                tracing::debug!(%error, "can't tell whether a snapshot is in use");
            }
        }
        let serving = inner.serving.lock();
        let next = serving.values().filter_map(|serving| serving.ending).map(|look| look.at).min();
        next.map(|at| at.saturating_duration_since(now))
    }

    /// Releases the resident pages of one index. A single read may have mapped half a MiB: the
    /// kernel maps its cached pages in one piece.
    pub(super) fn release_pages_of(&self, slot: u32) {
        if let Some(Serving { open: Some(open), .. }) = self.inner.serving.lock().get(&slot) {
            open.content.index().release_pages();
        }
    }

    /// Releases the resident pages of all indexes.
    pub(super) fn release_pages(&self) {
        for serving in self.inner.serving.lock().values() {
            if let Some(open) = &serving.open {
                open.content.index().release_pages();
            }
        }
    }

    /// Removes the records of all attached snapshots, after the session has ended.
    pub(super) fn forget_all(&self) {
        for slot in self.inner.serving.lock().keys() {
            if let Err(error) = self.inner.files.remove(*slot) {
                tracing::warn!(%error, "can't remove the record of an attached snapshot; it stays");
            }
        }
    }

    /// Waits for fetches in flight, after the server has stopped.
    pub(super) async fn shutdown(&self) {
        let serving: Vec<Serving> =
            self.inner.serving.lock().drain().map(|(_, serving)| serving).collect();
        self.inner.stores.outboxes().stop().await;
        let recent = self.inner.stores.take_recent();
        for open in serving.into_iter().filter_map(|serving| serving.open) {
            open.store.close().await;
            open.content.shutdown().await;
        }
        for store in recent {
            store.close().await;
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Blocks until received data is in place in the cache.
    pub(super) fn settle(&self) {
        self.inner.stores.settle();
    }
}

impl SnapshotsInner {
    /// Returns the parts that a snapshot is attached as, up to two for a lower layer, and the
    /// length of its longest path, which only matters there.
    async fn parts(
        self: &Arc<Self>,
        store: &Store,
        snapshot: SnapshotId,
        shape: Shape,
    ) -> Result<(Part, Option<Part>, u32), DaemonError> {
        if shape == Shape::Alone {
            return Ok((Part::Whole, None, 0));
        }
        // Finding the parts needs the index on this host.
        self.index(&store.remote, snapshot).await?;
        let inner = Arc::clone(self);
        let found = self.runtime.spawn_blocking(move || findings(&inner.state, snapshot)).await;
        let Findings { parts, longest_path } = found.map_err(|_| DaemonError::Panicked)?;
        Ok(match parts {
            Parts::Whole => (Part::Whole, None, longest_path),
            Parts::Common => (Part::Common, None, longest_path),
            Parts::Two(_) => (Part::Common, Some(Part::Apart), longest_path),
        })
    }

    /// Returns the index of a snapshot, fetching it if it is not on this host.
    async fn index(&self, remote: &Remote, snapshot: SnapshotId) -> Result<Index, SnapshotError> {
        let mut seen = IndexFetch::default();
        let opened = open_index_watched(remote, &self.state, snapshot, &mut seen).await;
        let recorder = self.stores.recorder();
        if seen.sent > 0 && recorder.is_on() {
            let outcome = if opened.is_ok() { FetchOutcome::Ok } else { FetchOutcome::Failed };
            recorder.fetched(&Fetched {
                class: FetchClass::Index,
                snapshot,
                times: [seen.sent, seen.first, seen.received],
                bytes: seen.bytes,
                outcome,
            });
        }
        opened
    }

    /// Returns the renumbering that shows the owner of the snapshot's root directory as `chown`.
    async fn alias(
        &self,
        remote: &Remote,
        snapshot: SnapshotId,
        chown: Option<Owner>,
    ) -> Result<Option<Alias>, DaemonError> {
        if chown.is_none() {
            return Ok(None);
        }
        let index = self.index(remote, snapshot).await?;
        let wrong = |source| SnapshotError::Index { id: snapshot, source };
        let Attr { uid, gid, .. } = index.attr(InodeIdx::ROOT).map_err(wrong)?;
        Ok(Alias::of(Owner { uid, gid }, chown))
    }

    /// Tells recordings the name of a slot's snapshot.
    fn call(&self, slot: Slot, name: &str) {
        if let Some(Serving { open: Some(open), .. }) = self.serving.lock().get(&slot.get()) {
            open.tracking.source().call(name);
        }
    }

    /// Returns the view that a slot shows. May read a small file.
    fn view(&self, key: &AttachKey) -> View {
        match (key.part, || findings(&self.state, key.snapshot).parts) {
            (Part::Whole, _) => View::Whole,
            (Part::Common, _) => View::Common,
            (Part::Apart, parts) => match parts() {
                Parts::Two(split) => View::Apart(split),
                // The parts are a function of the index, so this can't happen.
                Parts::Whole | Parts::Common => View::Whole,
            },
        }
    }

    fn cell(&self, key: &AttachKey) -> Arc<AsyncMutex<Weak<Use>>> {
        let mut uses = self.uses.lock();
        if uses.len() > 2 * ATTACHED_MAX {
            // Drops cells that no task holds and that have no attached snapshot.
            uses.retain(|_, cell| {
                Arc::strong_count(cell) > 1
                    || cell.try_lock().is_ok_and(|current| current.strong_count() > 0)
            });
        }
        Arc::clone(uses.entry(key.clone()).or_default())
    }

    /// Creates the file system that a slot serves, and its tracking.
    #[allow(clippy::too_many_arguments)] // each is another's to know
    fn open(
        &self,
        store: &Arc<Store>,
        index: Index,
        key: &AttachKey,
        load: &LoadOptions,
        begins: Begins,
        early: Option<Early>,
        view: View,
    ) -> (OpenSlot, SnapshotFs) {
        let tracked = (key.snapshot, key.store.clone(), key.cache);
        let tracking = self.trackings.of(tracked, store, &index, load, begins, early);
        let (tracker, source) = (Arc::clone(tracking.tracker()), Arc::clone(tracking.source()));
        let content = store.content(index.clone(), tracker, source);
        let fs = SnapshotFs::with_view(index, Arc::new(content.clone()), view)
            .with_alias(key.alias.map(served));
        (OpenSlot { content, store: Arc::clone(store), tracking }, fs)
    }

    /// Hides the slot from new users; it is served until its last user is gone.
    fn detach(inner: &Arc<Self>, slot: Slot) {
        let tracking = inner.serving.lock().get_mut(&slot.get()).and_then(|serving| {
            serving.ending = Some(Look { at: Instant::now() + LOOK_FIRST, pause: LOOK_FIRST });
            serving.open.as_ref().map(|open| Arc::clone(&open.tracking))
        });
        // A detached snapshot is no longer prefetched.
        tracking.inspect(|tracking| tracking.leave());
        let weak = Arc::downgrade(inner);
        // May block on the kernel, and the caller may be an async task.
        let work = move || {
            let Some(inner) = weak.upgrade() else { return };
            match inner.server.detach(slot) {
                Ok(ended) => {
                    injected(Step::SlotDetached);
                    let weak = Arc::downgrade(&inner);
                    ended.then(move || {
                        if let Some(inner) = weak.upgrade() {
                            Self::forget(&inner, slot);
                        }
                    });
                }
                // The kernel had forgotten the slot before.
                Err(DaemonError::Host(HostError::NoSlot(_))) => Self::forget(&inner, slot),
                // The server is stopping, and its slots with it.
                Err(DaemonError::Ending) => {}
                Err(error) => tracing::warn!(%error, "can't detach a snapshot"),
            }
        };
        inner.tasks.spawn_blocking_on(work, &inner.runtime);
    }

    fn forget(inner: &Arc<Self>, slot: Slot) {
        let serving = inner.serving.lock().remove(&slot.get());
        if let Err(error) = inner.files.remove(slot.get()) {
            tracing::warn!(%error, "can't remove the record of an attached snapshot; it stays");
        }
        injected(Step::SlotForgotten);
        if let Some(open) = serving.and_then(|serving| serving.open) {
            let close = async move {
                open.content.shutdown().await;
                drop(open);
            };
            inner.tasks.spawn_on(close, &inner.runtime);
        }
        inner.changed.notify_one();
    }
}

fn served(Alias { from, to }: Alias) -> OwnerAlias {
    OwnerAlias {
        user: Renumber { from: from.uid, to: to.uid },
        group: Renumber { from: from.gid, to: to.gid },
    }
}

/// Runs an injection point whose failure has no caller to report to.
fn injected(step: Step) {
    if let Err(error) = inject::point(step) {
        tracing::warn!(%error, "going on");
    }
}

#[cfg(test)]
mod tests;
