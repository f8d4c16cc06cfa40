//! The attached snapshots: each once, whatever the number of mounts, and for as long as somebody sees
//! anything of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use inlay_fusefs::keeper::KeptSlot;
use inlay_fusefs::{HostError, Opener, Parts, Restored, Slot, SnapshotFs, View};
use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;
use inlay_store::remote::Remote;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_util::task::TaskTracker;

use super::api::{AttachedShown, CacheUse, LoadOptions, LoadingShown, Prefetch, StoreRef};
use super::attached::{AttachKey, AttachedFile, AttachedFiles, Part};
use super::error::DaemonError;
use super::metrics::Loaded;
use super::server::Server;
use super::stores::{Store, Stores};
use super::tracking::{Begins, Early, Tracking, Trackings};
use crate::content::SnapshotContent;
use crate::inject::{self, Step};
use crate::snapshots::{IndexFetch, SnapshotError, open_index_watched, parts, resolve};
use crate::state::State;
use crate::trace::record::{Fetched, Recorder};
use crate::trace::{FetchClass, FetchOutcome, SegmentKind};

/// How many may be attached at once.
const ATTACHED_MAX: usize = 16_384;

/// How soon it is looked at again whether a snapshot that is out of sight is still in use: twice as
/// long after each look.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_LAST: Duration = Duration::from_secs(10);

/// All attached snapshots. Clones share everything.
#[derive(Clone)]
pub(super) struct Snapshots {
    inner: Arc<Inner>,
}

struct Inner {
    server: Server,
    stores: Stores,
    state: State,
    files: AttachedFiles,
    runtime: Handle,
    tasks: TaskTracker,
    trackings: Trackings,
    /// Woken when a slot has been let go.
    changed: Arc<Notify>,
    /// Who attaches a snapshot holds its lock: others wait and share what comes of it.
    uses: Mutex<HashMap<AttachKey, Arc<AsyncMutex<Weak<Use>>>>>,
    serving: Mutex<HashMap<u32, Serving>>,
}

/// What belongs to a slot until the kernel has forgotten it.
struct Serving {
    key: AttachKey,
    /// Opened when the slot is first asked for something, if an earlier daemon has attached it.
    open: Option<Open>,
    /// It is out of sight: when it is looked at again whether anybody uses it.
    ending: Option<Look>,
}

/// A slot that serves.
struct Open {
    content: SnapshotContent,
    store: Arc<Store>,
    tracking: Arc<Tracking>,
}

/// When to look, and how long to wait if that was too early.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    pause: Duration,
}

/// What an attached snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// It is seen as it is.
    Alone,
    /// It is below an overlay, which can put parts together.
    Below,
}

/// What a reference stood for, and what shows it.
pub(super) struct Attached {
    pub(super) snapshot: SnapshotId,
    pub(super) top: Arc<Use>,
    /// What the upper part does not show.
    pub(super) below: Option<Arc<Use>>,
}

/// A snapshot that is attached for as long as this lives.
pub(super) struct Use {
    inner: Weak<Inner>,
    slot: Slot,
}

/// What keeps slots attached, by their numbers.
pub(super) type Uses = HashMap<u32, Arc<Use>>;

impl Use {
    pub(super) fn slot(&self) -> Slot {
        self.slot
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            Inner::detach(&inner, self.slot);
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
        let inner = Inner {
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
        };
        Self { inner: Arc::new(inner) }
    }

    /// The snapshot that `reference` means in `store`, attached as `shape` needs it.
    pub(super) async fn attach(
        &self,
        reference: &str,
        store: &StoreRef,
        cache: CacheUse,
        shape: Shape,
        load: &LoadOptions,
    ) -> Result<Attached, DaemonError> {
        let inner = &self.inner;
        let opened = inner.stores.get(store, cache)?;
        let _span = self.recorder().span(SegmentKind::Attach, reference);
        let _mounting = opened.mounting();
        let snapshot = resolve(&opened.remote, reference).await?;
        self.recorder().mark("resolved", || format!("{reference} is {snapshot}"));
        // It comes while the index does.
        let mut early = Some(inner.trackings.fetch(&opened.remote, snapshot, load));
        let key = |part| AttachKey { snapshot, store: store.clone(), cache, part };
        let (top, below) = inner.parts(&opened, snapshot, shape).await?;
        let top = self.attach_part(key(top), &opened, load, &mut early).await?;
        let below = match below {
            Some(part) => Some(self.attach_part(key(part), &opened, load, &mut early).await?),
            None => None,
        };
        if snapshot.to_string() != reference {
            inner.call(top.slot(), reference);
        }
        self.recorder().mark("attached", || reference.to_owned());
        Ok(Attached { snapshot, top, below })
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
        let serving = Serving { key: key.clone(), open: Some(open), ending: None };
        inner.serving.lock().insert(slot.get(), serving);
        let made = Arc::new(Use { inner: Arc::downgrade(inner), slot });
        let injected = |step| {
            inject::point(step).map_err(DaemonError::io("attach a snapshot in", inner.state.root()))
        };
        injected(Step::SlotAttached)?;
        // Before anything can be mounted: the next daemon must be able to serve it.
        inner.files.add(slot.get(), &key, load)?;
        injected(Step::SlotRecorded)?;
        *current = Arc::downgrade(&made);
        Ok(made)
    }

    /// Where a slot's snapshot is seen.
    pub(super) fn dir(&self, slot: Slot) -> Result<PathBuf, DaemonError> {
        self.inner.server.dir(slot)
    }

    /// Takes on what an earlier daemon of this session has attached to `slots`: how each is opened
    /// when it is first asked for something, and what keeps it attached. What nobody takes from the
    /// second is detached when it is dropped, which must not be before the server serves.
    pub(super) fn restore(&self, slots: &[KeptSlot]) -> Result<(Vec<Restored>, Uses), DaemonError> {
        let inner = &self.inner;
        let mut known: HashMap<u32, AttachedFile> =
            inner.files.load()?.into_iter().map(|file| (file.slot, file)).collect();
        let mut restored = Vec::new();
        let mut uses = Uses::new();
        for kept in slots {
            // Without a file: its daemon died before anything could be mounted of it.
            let number = kept.slot.get();
            let Some(AttachedFile { key, load, .. }) = known.remove(&number) else { continue };
            let opener = inner.opener(kept.slot, key.clone(), load.clone());
            restored.push(Restored { slot: kept.slot, opener });
            let made = Arc::new(Use { inner: Arc::downgrade(inner), slot: kept.slot });
            if !kept.detached
                && let Ok(mut current) = inner.cell(&key).try_lock()
            {
                *current = Arc::downgrade(&made);
            }
            inner.serving.lock().insert(number, Serving { key, open: None, ending: None });
            uses.insert(number, made);
        }
        for left in known.into_keys() {
            // The kernel has forgotten it.
            inner.files.remove(left)?;
        }
        Ok((restored, uses))
    }

    /// Goes on loading what an earlier daemon has attached: opens it without waiting until the kernel
    /// asks for something of it. The server must serve.
    pub(super) fn resume(&self) -> Result<(), DaemonError> {
        let inner = &self.inner;
        let mut slots: Vec<u32> = {
            let serving = inner.serving.lock();
            let files = inner.files.load()?.into_iter();
            let loaded = files.filter(|file| {
                let seen = serving.get(&file.slot).is_some_and(|of| of.ending.is_none());
                seen && file.load.prefetch != Prefetch::Off
            });
            loaded.map(|file| file.slot).collect()
        };
        // The newest is still the newest.
        slots.sort_unstable();
        let (server, tasks) = (inner.server.clone(), &inner.tasks);
        let open = move || {
            for slot in slots.into_iter().filter_map(Slot::new) {
                if let Err(error) = server.open(slot) {
                    // Whoever reads there gets the error.
                    tracing::debug!(%slot, %error, "it is not loaded ahead");
                }
            }
        };
        tasks.spawn_blocking_on(open, &inner.runtime);
        Ok(())
    }

    /// What is attached, by slot.
    pub(super) fn list(&self) -> Vec<AttachedShown> {
        let serving = self.inner.serving.lock();
        let mut shown: Vec<AttachedShown> = serving
            .iter()
            .map(|(slot, serving)| AttachedShown {
                slot: *slot,
                snapshot: serving.key.snapshot,
                store: serving.key.store.clone(),
                cache: serving.key.cache,
                part: serving.key.part,
                ending: serving.ending.is_some(),
            })
            .collect();
        shown.sort_by_key(|shown| shown.slot);
        shown
    }

    /// How far the loading of each is.
    pub(super) fn loading(&self) -> Vec<LoadingShown> {
        self.inner.trackings.list()
    }

    /// What was loaded ahead in all, and how many starts were recorded and could not be.
    pub(super) fn starts(&self) -> (Loaded, (u64, u64)) {
        self.inner.trackings.totals()
    }

    /// The state directory, where indexes are kept.
    pub(super) fn state(&self) -> &State {
        &self.inner.state
    }

    /// The configuration of an image, as its index has it; nothing if it has none.
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

    /// The FUSE side.
    pub(super) fn server(&self) -> &Server {
        &self.inner.server
    }

    /// What records reads and requests.
    pub(super) fn recorder(&self) -> &Recorder {
        self.inner.stores.recorder()
    }

    /// The stores that they come from.
    pub(super) fn stores(&self) -> &Stores {
        &self.inner.stores
    }

    /// Saves what starts have taught that are over.
    pub(super) fn end_runs(&self) {
        self.inner.trackings.end_runs();
    }

    /// How many are attached, those too that only their last users see.
    pub(super) fn count(&self) -> usize {
        self.inner.serving.lock().len()
    }

    /// Looks which snapshots that are out of sight are no longer in use. Blocks. Returns when to look
    /// again.
    pub(super) fn look(&self) -> Option<Duration> {
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

    /// Gives back the memory of one index. A single look at it may have mapped half a MiB, because
    /// the kernel maps what it has in one piece.
    pub(super) fn release_pages_of(&self, slot: u32) {
        if let Some(Serving { open: Some(open), .. }) = self.inner.serving.lock().get(&slot) {
            open.content.index().release_pages();
        }
    }

    /// Gives the memory back that indexes take, as far as they are files.
    pub(super) fn release_pages(&self) {
        for serving in self.inner.serving.lock().values() {
            if let Some(open) = &serving.open {
                open.content.index().release_pages();
            }
        }
    }

    /// Removes the files about what was attached: the session is over.
    pub(super) fn forget_all(&self) {
        for slot in self.inner.serving.lock().keys() {
            if let Err(error) = self.inner.files.remove(*slot) {
                tracing::warn!(%error, "a file about an attached snapshot stays behind");
            }
        }
    }

    /// Waits for what still fetches, after the server has stopped.
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

    /// Waits until what came has its place in the cache. Blocks.
    pub(super) fn settle(&self) {
        self.inner.stores.settle();
    }
}

impl Inner {
    /// As what a snapshot is attached. Below an overlay it may be two parts.
    async fn parts(
        self: &Arc<Self>,
        store: &Store,
        snapshot: SnapshotId,
        shape: Shape,
    ) -> Result<(Part, Option<Part>), DaemonError> {
        if shape == Shape::Alone {
            return Ok((Part::Whole, None));
        }
        // Looking for the parts needs the index on this host.
        self.index(&store.remote, snapshot).await?;
        let inner = Arc::clone(self);
        let found = self.runtime.spawn_blocking(move || parts(&inner.state, snapshot)).await;
        Ok(match found.map_err(|_| DaemonError::Panicked)? {
            Parts::Whole => (Part::Whole, None),
            Parts::Common => (Part::Common, None),
            Parts::Two(_) => (Part::Common, Some(Part::Apart)),
        })
    }

    /// The index of a snapshot, fetched if it is not on this host.
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

    /// Says what a slot's snapshot is called, for whoever looks at a recording.
    fn call(&self, slot: Slot, name: &str) {
        if let Some(Serving { open: Some(open), .. }) = self.serving.lock().get(&slot.get()) {
            open.tracking.source().call(name);
        }
    }

    /// What a slot shows. May read a small file.
    fn view(&self, key: &AttachKey) -> View {
        match (key.part, || parts(&self.state, key.snapshot)) {
            (Part::Whole, _) => View::Whole,
            (Part::Common, _) => View::Common,
            (Part::Apart, parts) => match parts() {
                Parts::Two(split) => View::Apart(split),
                // What makes a part is a function of the index.
                Parts::Whole | Parts::Common => View::Whole,
            },
        }
    }

    fn cell(&self, key: &AttachKey) -> Arc<AsyncMutex<Weak<Use>>> {
        let mut uses = self.uses.lock();
        if uses.len() > 2 * ATTACHED_MAX {
            // Cells that nobody holds and whose snapshot is gone.
            uses.retain(|_, cell| {
                Arc::strong_count(cell) > 1
                    || cell.try_lock().is_ok_and(|current| current.strong_count() > 0)
            });
        }
        Arc::clone(uses.entry(key.clone()).or_default())
    }

    /// Opens a snapshot again. Called on a thread that serves the kernel.
    fn opener(self: &Arc<Self>, slot: Slot, key: AttachKey, load: LoadOptions) -> Opener {
        let inner = Arc::downgrade(self);
        Box::new(move || {
            let inner = inner.upgrade().ok_or("the daemon is about to end")?;
            let store = inner.stores.get(&key.store, key.cache)?;
            let index: Index = inner.runtime.block_on(inner.index(&store.remote, key.snapshot))?;
            let early = inner.trackings.fetch(&store.remote, key.snapshot, &load);
            let view = inner.view(&key);
            let begins = Begins::Earlier;
            let (open, fs) = inner.open(&store, index, &key, &load, begins, Some(early), view);
            match inner.serving.lock().get_mut(&slot.get()) {
                // It is out of sight already, and read by its last users only.
                Some(Serving { ending: Some(_), .. }) | None => open.tracking.leave(),
                Some(_) => {}
            }
            if let Some(serving) = inner.serving.lock().get_mut(&slot.get()) {
                serving.open = Some(open);
            }
            Ok(fs)
        })
    }

    /// A snapshot as a slot serves it.
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
    ) -> (Open, SnapshotFs) {
        let tracked = (key.snapshot, key.store.clone(), key.cache);
        let tracking = self.trackings.of(tracked, store, &index, load, begins, early);
        let (tracker, source) = (Arc::clone(tracking.tracker()), Arc::clone(tracking.source()));
        let content = store.content(index.clone(), tracker, source);
        let fs = SnapshotFs::with_view(index, Arc::new(content.clone()), view);
        (Open { content, store: Arc::clone(store), tracking }, fs)
    }

    /// Out of sight; served until nothing of it is in use.
    fn detach(inner: &Arc<Self>, slot: Slot) {
        let tracking = inner.serving.lock().get_mut(&slot.get()).and_then(|serving| {
            serving.ending = Some(Look { at: Instant::now() + LOOK_FIRST, pause: LOOK_FIRST });
            serving.open.as_ref().map(|open| Arc::clone(&open.tracking))
        });
        // What is not seen any more is not loaded any more.
        tracking.inspect(|tracking| tracking.leave());
        let weak = Arc::downgrade(inner);
        // It may have to wait for the kernel, and the caller may be a task.
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
                // The kernel had forgotten it before.
                Err(DaemonError::Host(HostError::NoSlot(_))) => Self::forget(&inner, slot),
                // The server is at its end, and all slots with it.
                Err(DaemonError::Ending) => {}
                Err(error) => tracing::warn!(%error, "a snapshot could not be detached"),
            }
        };
        inner.tasks.spawn_blocking_on(work, &inner.runtime);
    }

    fn forget(inner: &Arc<Self>, slot: Slot) {
        let serving = inner.serving.lock().remove(&slot.get());
        if let Err(error) = inner.files.remove(slot.get()) {
            tracing::warn!(%error, "a file about an attached snapshot stays behind");
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

/// Where nobody waits for an outcome.
fn injected(step: Step) {
    if let Err(error) = inject::point(step) {
        tracing::warn!(%error, "going on");
    }
}
