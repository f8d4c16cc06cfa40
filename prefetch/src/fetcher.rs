//! Fetches groups: once for any number of readers, verified, decoded, and cached.
//!
//! This is the scheduler's driver: it reports events with their time and executes the actions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use inlay_store::cache::Cache;
use inlay_store::format::{FormatError, Group};
use inlay_store::group::decode_group;
use inlay_store::remote::Remote;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch;
use crate::error::FetchError;
use crate::limits::FetchLimits;
use crate::scheduler::{
    Action, Joined, LinkEstimate, Moment, Probed, Request, Ticket, Urgency, WorkId,
};
use crate::source::RangeSource;
use crate::stats::{Counters, FetchStats, Gauged, count};
use crate::table::{Table, Waiter, Wanted};
use crate::want::{Class, GroupRef, Key};
use crate::watch::{FetchEvent, FetchWatch};
use crate::work::{GroupList, Loading, Mounting, missing_groups};
use crate::workers::Workers;

/// Fetches groups. Cheap to clone; clones share all state.
///
/// Await `shutdown` before the runtime ends: it joins every task.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

/// Verifies and decodes the stored bytes of a group; tests replace it.
pub(crate) type Decode = fn(&[u8], &Group) -> Result<Vec<u8>, FormatError>;

/// State shared by the fetcher and its tasks.
pub(crate) struct Shared {
    pub(crate) source: Box<dyn RangeSource>,
    pub(crate) cache: Option<Cache>,
    pub(crate) limits: FetchLimits,
    pub(crate) table: Mutex<Table>,
    pub(crate) counters: Counters,
    pub(crate) decode: Decode,
    pub(crate) decoders: Semaphore,
    /// Decode and cache prefetched groups.
    pub(crate) workers: Workers,
    pub(crate) inserters: Semaphore,
    /// Decoded bytes in flight into the cache.
    pub(crate) coming: AtomicU64,
    /// Permits of 1 KiB each.
    pub(crate) insert_backlog: Semaphore,
    watch: Option<Arc<dyn FetchWatch>>,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
    began: Instant,
}

/// A reader's registration for a group; unregisters on drop.
struct WaitingReader {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Drop for WaitingReader {
    fn drop(&mut self) {
        self.shared.table.lock().leave(&self.ticket);
        self.shared.pump();
    }
}

impl Fetcher {
    /// Creates a fetcher that reads from `remote` and fills `cache`. Its tasks run on `runtime`,
    /// which needs time and I/O enabled.
    pub fn new(remote: Remote, cache: Option<Cache>, limits: FetchLimits, runtime: Handle) -> Self {
        Self::with_source(Box::new(remote), cache, limits, runtime)
    }

    /// Creates a fetcher that reads from any source.
    pub fn with_source(
        source: Box<dyn RangeSource>,
        cache: Option<Cache>,
        limits: FetchLimits,
        runtime: Handle,
    ) -> Self {
        Self::build(source, cache, limits, runtime, None, decode_group)
    }

    /// Like [`Self::with_source`], with an observer of its requests.
    pub fn watched(
        source: Box<dyn RangeSource>,
        cache: Option<Cache>,
        limits: FetchLimits,
        runtime: Handle,
        watch: Arc<dyn FetchWatch>,
    ) -> Self {
        Self::build(source, cache, limits, runtime, Some(watch), decode_group)
    }

    /// Like [`Self::with_source`], with another decoder.
    #[cfg(test)]
    pub(crate) fn decoding(
        source: Box<dyn RangeSource>,
        cache: Option<Cache>,
        limits: FetchLimits,
        runtime: Handle,
        decode: Decode,
    ) -> Self {
        Self::build(source, cache, limits, runtime, None, decode)
    }

    fn build(
        source: Box<dyn RangeSource>,
        cache: Option<Cache>,
        limits: FetchLimits,
        runtime: Handle,
        watch: Option<Arc<dyn FetchWatch>>,
        decode: Decode,
    ) -> Self {
        let decoders = limits.decoders.max(1);
        let backlog = usize::try_from(limits.insert_backlog_bytes >> 10).unwrap_or(usize::MAX);
        let shared = Shared {
            source,
            cache,
            limits,
            table: Mutex::new(Table::new(limits)),
            counters: Counters::default(),
            decode,
            decoders: Semaphore::new(decoders),
            workers: Workers::start(limits.ahead_workers),
            inserters: Semaphore::new(limits.inserters.max(1)),
            coming: AtomicU64::new(0),
            insert_backlog: Semaphore::new(backlog.min(Semaphore::MAX_PERMITS)),
            watch,
            runtime,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            began: Instant::now(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the decoded bytes of a group. A group queued for a lower class is promoted, a fetch
    /// in flight is joined. Dropping the future cancels the fetch unless other readers wait.
    pub async fn group(&self, want: &GroupRef) -> Result<Bytes, FetchError> {
        let groups = self.groups(std::slice::from_ref(want)).await?;
        groups.into_iter().next().ok_or(FetchError::Shutdown)
    }

    /// Returns the decoded bytes of several groups, in order. Missing neighbours are fetched in one
    /// request. Fails with the first error.
    pub async fn groups(&self, wants: &[GroupRef]) -> Result<Vec<Bytes>, FetchError> {
        let shared = &self.shared;
        let _waiting = Gauged::new(&shared.counters.waiting);
        let began = Instant::now();
        let coming = self.demand(wants)?;
        shared.pump();
        let deadline = began + shared.limits.deadline;
        let mut groups = Vec::with_capacity(wants.len());
        // All waiters are registered, so the outcomes of later groups are kept until the loop
        // reaches them.
        for (want, coming) in wants.iter().zip(coming) {
            let (joined, _waiting, waiter) = match coming {
                Coming::Here(bytes) => {
                    groups.push(bytes);
                    continue;
                }
                Coming::Later(joined, waiting, waiter) => (joined, waiting, waiter),
            };
            groups.push(shared.wait(want, waiter, deadline).await?);
            let waits = match joined {
                Joined::Queued => &shared.counters.wait_store,
                Joined::Flying(_) | Joined::Promoted(_) => &shared.counters.wait_in_flight,
            };
            waits.take(began.elapsed());
        }
        Ok(groups)
    }

    fn demand(&self, wants: &[GroupRef]) -> Result<Vec<Coming>, FetchError> {
        let shared = &self.shared;
        // Declared before the lock guard: dropping a `WaitingReader` takes the table lock.
        let mut coming = Vec::with_capacity(wants.len());
        let mut table = shared.table.lock();
        for want in wants {
            match table.demand(want) {
                Ok(Wanted::Here(bytes)) => coming.push(Coming::Here(bytes)),
                Ok(Wanted::Coming(joined, ticket, waiter)) => {
                    match joined {
                        Joined::Flying(_) => count(&shared.counters.joined),
                        Joined::Promoted(_) => count(&shared.counters.promoted),
                        Joined::Queued => {}
                    }
                    let waiting = WaitingReader { shared: Arc::clone(shared), ticket };
                    coming.push(Coming::Later(joined, waiting, waiter));
                }
                Err(error) => {
                    drop(table);
                    return Err(error);
                }
            }
        }
        drop(table);
        shared.tell_queued(coming.iter().filter_map(Coming::queued));
        Ok(coming)
    }

    /// Returns the decoded bytes of a group if it is in memory. Never blocks.
    pub fn here(&self, want: &GroupRef) -> Option<Bytes> {
        self.shared.table.lock().here(want)
    }

    /// Hints that these groups will probably be read soon. Best effort: skips groups that are
    /// cached or in flight, and drops the excess when the queue is full. Never waits for the
    /// network.
    pub fn read_ahead(&self, wants: Vec<GroupRef>) {
        let shared = &self.shared;
        let missing: Vec<GroupRef> = wants
            .into_iter()
            .filter(|want| {
                let has = |cache: &Cache| cache.has(&want.group.digest, want.home.as_ref());
                !shared.cache.as_ref().is_some_and(has)
            })
            .collect();
        if missing.is_empty() {
            return;
        }
        shared.tell_queued(missing.iter().map(GroupRef::key));
        {
            let mut table = shared.table.lock();
            for want in &missing {
                if !table.hint(want) {
                    count(&shared.counters.hints_dropped);
                }
            }
        }
        shared.pump();
    }

    /// Loads a snapshot in the background until the returned handle is dropped. Nothing is loaded
    /// before [`Loading::plan`] is called. Returns `None` without a cache: there would be nowhere
    /// to put the groups.
    pub fn load(&self, urgency: Urgency, list: Arc<dyn GroupList>) -> Option<Loading> {
        self.shared.cache.as_ref()?;
        Some(Loading::begin(&self.shared, urgency, list))
    }

    /// Pauses prefetch while a snapshot is being mounted, until the returned guard is dropped, so
    /// that its index does not queue behind prefetch.
    pub fn mounting(&self) -> Mounting {
        Mounting::begin(&self.shared)
    }

    /// Fails all waiting readers, stops all requests, and waits for all tasks to end.
    pub async fn shutdown(&self) {
        self.shared.table.lock().close();
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Returns the fetcher's stats.
    pub fn stats(&self) -> FetchStats {
        let gauges = self.shared.table.lock().gauges();
        self.shared.counters.stats(&gauges)
    }

    /// Returns the current estimate of the link to the store.
    pub fn link(&self) -> LinkEstimate {
        self.shared.table.lock().scheduler.link()
    }
}

enum Coming {
    Here(Bytes),
    Later(Joined, WaitingReader, Waiter),
}

impl Coming {
    /// Returns the key if this demand queued or promoted the group.
    fn queued(&self) -> Option<Key> {
        match self {
            Self::Later(Joined::Queued | Joined::Promoted(_), waiting, _) => {
                Some(*waiting.ticket.key())
            }
            Self::Later(Joined::Flying(_), ..) | Self::Here(_) => None,
        }
    }
}

impl Shared {
    /// Returns the scheduler's time.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.began.elapsed())
    }

    /// Reports an event if the observer is on.
    pub(crate) fn emit(&self, event: impl FnOnce() -> FetchEvent<'static>) {
        if let Some(watch) = self.watched() {
            watch.on_event(&event());
        }
    }

    /// Returns the observer if it is on.
    pub(crate) fn watched(&self) -> Option<&Arc<dyn FetchWatch>> {
        self.watch.as_ref().filter(|watch| watch.is_on())
    }

    fn tell_queued(&self, keys: impl Iterator<Item = Key>) {
        if let Some(watch) = self.watched() {
            let keys: Vec<Key> = keys.collect();
            if !keys.is_empty() {
                watch.on_event(&FetchEvent::Queued(&keys));
            }
        }
    }

    /// Executes the scheduler's actions until none is left. Must not be called with the table lock
    /// held.
    pub(crate) fn pump(self: &Arc<Self>) {
        loop {
            let now = self.now();
            let mut table = self.table.lock();
            let Some(action) = table.next(now) else {
                self.set_alarm(&mut table, now);
                return;
            };
            match action {
                Action::Fetch(request) => {
                    let stop = CancellationToken::new();
                    table.stops.insert(request.id, stop.clone());
                    drop(table);
                    self.begin(request, stop);
                }
                Action::Probe { work, groups, class } => {
                    let list = table.lists.get(&work).map(Arc::clone);
                    drop(table);
                    let shared = Arc::clone(self);
                    let probe = async move { shared.probe(work, list, groups, class).await };
                    self.tasks.spawn_on(probe, &self.runtime);
                }
                Action::Cancel(id) => {
                    let stop = table.stops.get(&id).cloned();
                    drop(table);
                    count(&self.counters.cancelled);
                    tracing::debug!(target: "inlay_prefetch::decisions", request = id.0, "cancel");
                    stop.inspect(CancellationToken::cancel);
                }
            }
        }
    }

    fn begin(self: &Arc<Self>, request: Request, stop: CancellationToken) {
        tracing::debug!(
            target: "inlay_prefetch::decisions",
            request = request.id.0,
            class = %request.class,
            work = request.work.map(|work| work.0),
            blob = %request.blob,
            from = request.range.start,
            bytes = request.range.end - request.range.start,
            groups = request.wants.len(),
            why = %request.why,
            "fetch"
        );
        self.counters.requests.add(request.class, 1);
        let along = request.wants.len().saturating_sub(1) as u64;
        self.counters.coalesced.fetch_add(along, Relaxed);
        self.tasks.spawn_on(batch::run(Arc::clone(self), request, stop), &self.runtime);
    }

    async fn probe(
        self: &Arc<Self>,
        work: WorkId,
        list: Option<Arc<dyn GroupList>>,
        groups: Vec<u32>,
        class: Class,
    ) {
        let probed = match (&self.cache, list) {
            (Some(cache), Some(list)) => {
                let cache = cache.clone();
                let coming = self.coming.load(Relaxed);
                let probing = move || missing_groups(&cache, &*list, &groups, class, coming);
                // A panic in the probe comes from the index; then nothing is loaded.
                self.runtime.spawn_blocking(probing).await.unwrap_or_default()
            }
            _ => Probed::default(),
        };
        let now = self.now();
        self.table.lock().scheduler.probed(now, work, probed);
        self.pump();
    }

    /// Schedules the next `pump` for the scheduler's wake time.
    fn set_alarm(self: &Arc<Self>, table: &mut Table, now: Moment) {
        let Some(at) = table.scheduler.wakes_at() else { return };
        if table.closed || table.alarm.is_some_and(|alarm| now < alarm && alarm <= at) {
            return;
        }
        table.alarm = Some(at);
        let shared = Arc::clone(self);
        let pause = at.since(now) + Duration::from_millis(1);
        let alarm = async move {
            tokio::select! {
                () = sleep(pause) => {}
                () = shared.stop.cancelled() => return,
            }
            shared.pump();
        };
        self.tasks.spawn_on(alarm, &self.runtime);
    }

    async fn wait(
        &self,
        want: &GroupRef,
        mut waiter: Waiter,
        deadline: Instant,
    ) -> Result<Bytes, FetchError> {
        let came = timeout_at(deadline, waiter.wait_for(Option::is_some)).await;
        match came {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(FetchError::Shutdown)),
            // The task that would have published the outcome died with its runtime.
            Ok(Err(_)) => Err(FetchError::Shutdown),
            Err(_) => Err(self.too_late(want)),
        }
    }

    pub(crate) fn too_late(&self, want: &GroupRef) -> FetchError {
        FetchError::Deadline {
            blob: want.blob,
            offset: want.group.offset,
            after: self.limits.deadline,
        }
    }
}
