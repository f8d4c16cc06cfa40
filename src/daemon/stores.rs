//! The stores that the daemon talks to: each opened once, for as long as something of it is used.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use inlay_prefetch::scheduler::{LinkEstimate, Urgency};
use inlay_prefetch::{FetchFigures, FetchLimits, Fetcher, GroupList, Loading, Mounting};
use inlay_store::cache::{Cache, CacheFigures};
use inlay_store::format::Index;
use inlay_store::remote::{Near, PlainHttp, Remote, StoreConfig, Writes};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::api::{CacheUse, StoreRef};
use super::error::DaemonError;
use super::metrics::{Books, Entry};
use super::outbox::{Outboxes, Sealing};
use crate::config;
use crate::content::{CacheWaits, ContentOptions, Observers, SnapshotContent, Tracker};
use crate::state::State;
use crate::trace::record::{Recorder, Source, WatchId};

/// How many may be open at once. Each has connections and buffers of its own.
const STORES_MAX: usize = 64;
/// How many stay open that nothing uses, because they will probably be used again.
const RECENT: usize = 4;

type Key = (StoreRef, CacheUse);

/// An open store, and what fetches from it.
pub(super) struct Store {
    pub(super) remote: Remote,
    fetcher: Fetcher,
    cache: Option<Cache>,
    runtime: Handle,
    waits: Arc<CacheWaits>,
    watch: WatchId,
    entry: Arc<Entry>,
    closed: Arc<AtomicBool>,
}

impl Store {
    /// Gives every reader that waits an error, waits for what is under way, and says once what was
    /// fetched.
    pub(super) async fn close(&self) {
        close(self.fetcher.clone(), &self.entry, &self.closed).await;
    }

    /// The contents of a snapshot of this store, whose reads `tracker` is told of.
    pub(super) fn content(
        &self,
        index: Index,
        tracker: Arc<Tracker>,
        source: Arc<Source>,
    ) -> SnapshotContent {
        let waits = Arc::clone(&self.waits);
        let observers = Observers { tracker, waits, source: Some(source) };
        SnapshotContent::observed(
            index,
            self.cache.clone(),
            self.fetcher.clone(),
            ContentOptions::default(),
            self.runtime.clone(),
            Some(observers),
        )
    }

    /// Which of a recorder's stores it is.
    pub(super) fn watch(&self) -> WatchId {
        self.watch
    }

    /// Loads a snapshot ahead of its readers: see [`Fetcher::load`].
    pub(super) fn load(&self, urgency: Urgency, groups: Arc<dyn GroupList>) -> Option<Loading> {
        self.fetcher.load(urgency, groups)
    }

    /// A snapshot is about to be mounted: see [`Fetcher::mounting`].
    pub(super) fn mounting(&self) -> Mounting {
        self.fetcher.mounting()
    }

    /// What was fetched, and what the link is taken to be.
    pub(super) fn figures(&self) -> (FetchFigures, LinkEstimate) {
        (self.fetcher.figures(), self.fetcher.link())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let (fetcher, closed) = (self.fetcher.clone(), Arc::clone(&self.closed));
        let entry = Arc::clone(&self.entry);
        self.runtime.spawn(async move { close(fetcher, &entry, &closed).await });
    }
}

async fn close(fetcher: Fetcher, entry: &Entry, closed: &AtomicBool) {
    fetcher.shutdown().await;
    if closed.swap(true, Relaxed) {
        return;
    }
    entry.close();
    let figures = fetcher.figures();
    tracing::info!(
        demand_requests = figures.demand_requests(),
        ahead_requests = figures.ahead_requests(),
        fetched_bytes = figures.fetched_bytes(),
        "a store is closed"
    );
}

/// All open stores.
pub(super) struct Stores {
    state: State,
    cache: Cache,
    runtime: Handle,
    waits: Arc<CacheWaits>,
    books: Books,
    outboxes: Outboxes,
    recorder: Recorder,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    stores: HashMap<Key, Weak<Store>>,
    recent: VecDeque<Arc<Store>>,
}

impl Stores {
    pub(super) fn new(state: State, cache: Cache, runtime: Handle) -> Result<Self, DaemonError> {
        let (waits, books, recorder) = Default::default();
        let far = {
            let (state, runtime) = (state.clone(), runtime.clone());
            Box::new(move |store: &StoreRef| remote(&state, &runtime, store, None))
        };
        let outboxes = Outboxes::open(&state, far)?;
        let open = Mutex::new(Open::default());
        Ok(Self { state, cache, runtime, waits, books, outboxes, recorder, open })
    }

    /// What records reads and requests.
    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// What is on its way to the stores.
    pub(super) fn outboxes(&self) -> &Outboxes {
        &self.outboxes
    }

    /// The store that `store` names, for sealing a snapshot: what is written stays on this host first.
    pub(super) fn sealing(
        &self,
        store: &StoreRef,
        sealing: &Sealing,
    ) -> Result<Remote, DaemonError> {
        let near = sealing.near().with(Writes::Near);
        remote(&self.state, &self.runtime, store, Some(near))
    }

    /// The store that `store` names. Opening one asks it nothing.
    pub(super) fn get(&self, store: &StoreRef, cache: CacheUse) -> Result<Arc<Store>, DaemonError> {
        let key = (store.clone(), cache);
        let mut open = self.open.lock();
        if let Some(store) = open.stores.get(&key).and_then(Weak::upgrade) {
            open.touch(&store);
            return Ok(store);
        }
        open.stores.retain(|_, store| store.strong_count() > 0);
        if open.stores.len() >= STORES_MAX {
            return Err(DaemonError::Stores(STORES_MAX));
        }
        let opened = Arc::new(self.open(store, cache)?);
        open.stores.insert(key, Arc::downgrade(&opened));
        open.touch(&opened);
        Ok(opened)
    }

    fn open(&self, store: &StoreRef, cache: CacheUse) -> Result<Store, DaemonError> {
        let runtime = self.runtime.clone();
        let near = self.outboxes.of(store).near().clone();
        let remote = remote(&self.state, &runtime, store, Some(near))?;
        let cache = match cache {
            CacheUse::Kept => Some(self.cache.clone()),
            CacheUse::None => None,
        };
        let limits = FetchLimits::default();
        let watch = Arc::new(self.recorder.watch());
        let id = watch.id();
        let source = Box::new(remote.clone());
        let fetcher = Fetcher::watched(source, cache.clone(), limits, runtime.clone(), watch);
        let entry = Arc::new(self.books.open(store, fetcher.clone()));
        let waits = Arc::clone(&self.waits);
        let closed = Arc::default();
        Ok(Store { remote, fetcher, cache, runtime, waits, watch: id, entry, closed })
    }

    /// Those that are open, and no longer kept open for want of use.
    pub(super) fn take_recent(&self) -> Vec<Arc<Store>> {
        std::mem::take(&mut self.open.lock().recent).into()
    }

    /// Those that are open now.
    pub(super) fn all(&self) -> Vec<(StoreRef, CacheUse, Arc<Store>)> {
        let open = self.open.lock();
        let mut all: Vec<_> = open
            .stores
            .iter()
            .filter_map(|((store, cache), open)| Some((store.clone(), *cache, open.upgrade()?)))
            .collect();
        drop(open);
        all.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
        all
    }

    /// What was fetched from each, those included that are closed.
    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    /// How long reads took that this host could answer.
    pub(super) fn waits(&self) -> &CacheWaits {
        &self.waits
    }

    /// What happened in the cache.
    pub(super) fn cache_figures(&self) -> CacheFigures {
        self.cache.figures()
    }

    /// Waits until what came has its place in the cache. Blocks.
    pub(super) fn settle(&self) {
        self.cache.settle();
    }
}

fn remote(
    state: &State,
    runtime: &Handle,
    store: &StoreRef,
    near: Option<Near>,
) -> Result<Remote, DaemonError> {
    let url = match &store.url {
        Some(url) => url.clone(),
        None => state.embedded_store().display().to_string(),
    };
    let plain = if store.plain_http { PlainHttp::Allowed } else { PlainHttp::LoopbackOnly };
    let _guard = runtime.enter();
    Ok(Remote::open(&StoreConfig { near, ..config::store_config(&url, plain) })?)
}

impl Open {
    fn touch(&mut self, store: &Arc<Store>) {
        self.recent.retain(|recent| !Arc::ptr_eq(recent, store));
        self.recent.push_back(Arc::clone(store));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }
}
