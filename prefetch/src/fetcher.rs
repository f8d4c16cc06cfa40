//! Fetches groups: once for any number of readers, verified, decoded, and handed to the cache.

use std::sync::Arc;

use bytes::Bytes;
use inlay_store::cache::Cache;
use inlay_store::remote::Remote;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch;
use crate::error::FetchError;
use crate::limits::FetchLimits;
use crate::source::RangeSource;
use crate::stats::{Counters, FetchFigures, Gauged, count};
use crate::table::{Joined, Table, Waiter};
use crate::want::{Class, GroupRef};

/// Fetches groups. Clones share everything.
///
/// `shutdown` must be awaited before the runtime ends: it joins every task.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

/// What the fetcher and its tasks share.
pub(crate) struct Shared {
    pub(crate) source: Box<dyn RangeSource>,
    pub(crate) cache: Option<Cache>,
    pub(crate) limits: FetchLimits,
    pub(crate) table: Mutex<Table>,
    pub(crate) counters: Counters,
    pub(crate) decoders: Semaphore,
    /// Fewer than `decoders`, so that read-ahead leaves one for readers.
    pub(crate) read_ahead_decoders: Semaphore,
    pub(crate) inserters: Semaphore,
    /// In KiB.
    pub(crate) insert_backlog: Semaphore,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fetcher {
    /// Fetches from `remote`, and keeps what comes in `cache`. Its tasks run on `runtime`, which
    /// needs time and I/O.
    pub fn new(remote: Remote, cache: Option<Cache>, limits: FetchLimits, runtime: Handle) -> Self {
        Self::with_source(Box::new(remote), cache, limits, runtime)
    }

    /// Fetches from any source.
    pub fn with_source(
        source: Box<dyn RangeSource>,
        cache: Option<Cache>,
        limits: FetchLimits,
        runtime: Handle,
    ) -> Self {
        let decoders = limits.decoders.max(2);
        let backlog = usize::try_from(limits.insert_backlog_bytes >> 10).unwrap_or(usize::MAX);
        let shared = Shared {
            source,
            cache,
            limits,
            table: Mutex::new(Table::new(limits)),
            counters: Counters::default(),
            decoders: Semaphore::new(decoders),
            read_ahead_decoders: Semaphore::new(decoders - 1),
            inserters: Semaphore::new(limits.inserters.max(1)),
            insert_backlog: Semaphore::new(backlog.min(Semaphore::MAX_PERMITS)),
            runtime,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The decoded bytes of a group. A reader waits: what is queued for read-ahead is promoted, and
    /// what is in flight is joined. Dropping the future gives the group up, if nobody else waits.
    pub async fn group(&self, want: &GroupRef) -> Result<Bytes, FetchError> {
        let groups = self.groups(std::slice::from_ref(want)).await?;
        groups.into_iter().next().ok_or(FetchError::Shutdown)
    }

    /// The decoded bytes of several groups, in their order. Neighbours that have to be fetched come
    /// in one request. Fails with the first that can't be had.
    pub async fn groups(&self, wants: &[GroupRef]) -> Result<Vec<Bytes>, FetchError> {
        let shared = &self.shared;
        let _waiting = Gauged::new(&shared.counters.waiting);
        let joined: Vec<Joined> = {
            let mut table = shared.table.lock();
            wants.iter().map(|want| table.demand(want)).collect::<Result<_, _>>()?
        };
        shared.pump();
        let deadline = Instant::now() + shared.limits.deadline;
        let mut groups = Vec::with_capacity(wants.len());
        // All are waited for at once: what the later ones came to is kept until they are looked at.
        for (want, joined) in wants.iter().zip(joined) {
            let waiter = match joined {
                Joined::Here(bytes) => {
                    groups.push(bytes);
                    continue;
                }
                Joined::Flying(waiter) => {
                    count(&shared.counters.joined);
                    waiter
                }
                Joined::Promoted(waiter) => {
                    count(&shared.counters.promoted);
                    waiter
                }
                Joined::Queued(waiter) => waiter,
            };
            groups.push(shared.wait(want, waiter, deadline).await?);
        }
        Ok(groups)
    }

    /// The decoded bytes of a group that is in memory. Never waits.
    pub fn here(&self, want: &GroupRef) -> Option<Bytes> {
        self.shared.table.lock().here(want)
    }

    /// Says that these groups will probably be wanted. Those that are cached or on their way are
    /// left out; when too many are waiting, the rest is forgotten. Never waits for the network.
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

    /// Gives every reader that waits an error, stops every request, and waits until no task is left.
    pub async fn shutdown(&self) {
        self.shared.table.lock().close();
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// What it has done and is doing.
    pub fn figures(&self) -> FetchFigures {
        let (flights, bytes) = self.shared.table.lock().gauges();
        self.shared.counters.figures(flights, bytes)
    }
}

impl Shared {
    /// Starts all requests that there is room for.
    pub(crate) fn pump(self: &Arc<Self>) {
        loop {
            let Some(batch) = self.table.lock().next_batch() else { return };
            count(match batch.class {
                Class::Demand => &self.counters.demand_requests,
                Class::ReadAhead => &self.counters.read_ahead_requests,
            });
            let shared = Arc::clone(self);
            self.tasks.spawn_on(batch::run(shared, batch), &self.runtime);
        }
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
            // The task that would have announced something is gone with its runtime.
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
