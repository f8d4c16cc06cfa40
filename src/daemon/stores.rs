//! Open stores of the daemon: each is opened once and stays open while it is in use.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use inlay_prefetch::scheduler::{LinkEstimate, Urgency};
use inlay_prefetch::{FetchLimits, FetchStats, Fetcher, GroupList, Loading, Mounting};
use inlay_snapshots::content::{CacheWaits, ContentOptions, Observers, SnapshotContent, Tracker};
use inlay_snapshots::state::State;
use inlay_store::cache::{Cache, CacheStats};
use inlay_store::format::Index;
use inlay_store::remote::{OutboxDir, PlainHttp, Remote, StoreConfig};
use inlay_trace::record::{Recorder, Source, WatchId};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::api::{CacheUse, StoreRef};
use super::error::DaemonError;
use super::metrics::{Books, Entry};
use super::outbox::Outboxes;
use crate::config;

/// Limit of open stores. Each has its own connections and buffers.
const STORES_MAX: usize = 64;
/// Number of unused stores that stay open, because they will probably be used again.
const RECENT: usize = 4;

type StoreKey = (StoreRef, CacheUse);

/// An open store and its fetcher.
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
    /// Fails all waiting readers, waits for requests in flight, and logs the totals once.
    /// Idempotent.
    pub(super) async fn close(&self) {
        close(self.fetcher.clone(), &self.entry, &self.closed).await;
    }

    /// Returns the contents of a snapshot in this store. Reads are reported to `tracker`.
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

    /// Returns the id of this store in the recorder.
    pub(super) fn watch(&self) -> WatchId {
        self.watch
    }

    /// Prefetches a snapshot: see [`Fetcher::load`].
    pub(super) fn load(&self, urgency: Urgency, groups: Arc<dyn GroupList>) -> Option<Loading> {
        self.fetcher.load(urgency, groups)
    }

    /// Announces that a snapshot is about to be mounted: see [`Fetcher::mounting`].
    pub(super) fn mounting(&self) -> Mounting {
        self.fetcher.mounting()
    }

    /// Returns fetch stats and the current estimate of the link.
    pub(super) fn stats(&self) -> (FetchStats, LinkEstimate) {
        (self.fetcher.stats(), self.fetcher.link())
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
    let stats = fetcher.stats();
    tracing::info!(
        demand_requests = stats.demand_requests(),
        ahead_requests = stats.ahead_requests(),
        fetched_bytes = stats.fetched_bytes(),
        "closing a store"
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
    open: Mutex<OpenStore>,
}

#[derive(Default)]
struct OpenStore {
    stores: HashMap<StoreKey, Weak<Store>>,
    recent: VecDeque<Arc<Store>>,
}

impl Stores {
    pub(super) fn new(state: State, cache: Cache, runtime: Handle) -> Self {
        let (waits, books, recorder) = Default::default();
        let far = {
            let (state, runtime) = (state.clone(), runtime.clone());
            Box::new(move |store: &StoreRef| remote(&state, &runtime, store, None))
        };
        let outboxes = Outboxes::open(&state, far);
        let open = Mutex::new(OpenStore::default());
        Self { state, cache, runtime, waits, books, outboxes, recorder, open }
    }

    /// Recorder of reads and requests.
    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Outboxes of sealed snapshots on their way to stores.
    pub(super) fn outboxes(&self) -> &Outboxes {
        &self.outboxes
    }

    /// Returns the store `store`, opening it if necessary. Opening sends no request. Fails with
    /// [`DaemonError::Stores`] at the limit.
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
        let outbox_dir = self.outboxes.of(store).outbox_dir().clone();
        let remote = remote(&self.state, &runtime, store, Some(outbox_dir))?;
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

    /// Takes the recently used stores, so that they are no longer kept open.
    pub(super) fn take_recent(&self) -> Vec<Arc<Store>> {
        std::mem::take(&mut self.open.lock().recent).into()
    }

    /// Returns all stores that are open now.
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

    /// Fetch stats by store, including closed stores.
    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    /// Latencies of reads served from this host's cache.
    pub(super) fn waits(&self) -> &CacheWaits {
        &self.waits
    }

    /// Stats of the cache.
    pub(super) fn cache_figures(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Blocks until received data is in place in the cache.
    pub(super) fn settle(&self) {
        self.cache.settle();
    }
}

fn remote(
    state: &State,
    runtime: &Handle,
    store: &StoreRef,
    outbox_dir: Option<OutboxDir>,
) -> Result<Remote, DaemonError> {
    let url = match &store.url {
        Some(url) => url.clone(),
        None => state.embedded_store().display().to_string(),
    };
    let plain = if store.plain_http { PlainHttp::Allowed } else { PlainHttp::LoopbackOnly };
    let _guard = runtime.enter();
    Ok(Remote::open(&StoreConfig { outbox_dir, ..config::store_config(&url, plain) })?)
}

impl OpenStore {
    fn touch(&mut self, store: &Arc<Store>) {
        self.recent.retain(|recent| !Arc::ptr_eq(recent, store));
        self.recent.push_back(Arc::clone(store));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }
}
