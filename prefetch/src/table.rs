//! The state behind a fetcher's lock: the scheduler and the waiters of each group.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::FetchError;
use crate::limits::FetchLimits;
use crate::recent::Recent;
use crate::scheduler::{Action, Joined, Kept, Moment, RequestId, Scheduler, Ticket, WorkId};
use crate::stats::Gauges;
use crate::want::{GroupRef, Key};
use crate::work::GroupList;

/// Result of a group fetch.
pub(crate) type FetchOutcome = Result<Bytes, FetchError>;
/// Sender side: publishes the outcome to all waiters.
type Announce = watch::Sender<Option<FetchOutcome>>;
/// Receiver side, held by a reader.
pub(crate) type Waiter = watch::Receiver<Option<FetchOutcome>>;

/// State behind the fetcher's lock.
pub(crate) struct Table {
    pub(crate) scheduler: Scheduler,
    /// Groups in flight, from the first waiter or the arrival of the bytes, whichever comes first.
    announces: HashMap<Key, Announce>,
    /// Cancellation tokens of requests in flight.
    pub(crate) stops: HashMap<RequestId, CancellationToken>,
    pub(crate) lists: HashMap<WorkId, Arc<dyn GroupList>>,
    recent: Recent,
    /// When to poll the scheduler even if no event arrives.
    pub(crate) alarm: Option<Moment>,
    pub(crate) next_work: u64,
    pub(crate) closed: bool,
}

/// State of a group that a reader requested.
pub(crate) enum Wanted {
    /// In memory.
    Here(Bytes),
    /// Queued or in flight; the waiter receives the outcome.
    Coming(Joined, Ticket, Waiter),
}

impl Table {
    pub(crate) fn new(limits: FetchLimits) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            announces: HashMap::new(),
            stops: HashMap::new(),
            lists: HashMap::new(),
            recent: Recent::new(limits.recent_bytes),
            alarm: None,
            next_work: 0,
            closed: false,
        }
    }

    /// Returns the group if it is in memory.
    pub(crate) fn here(&mut self, want: &GroupRef) -> Option<Bytes> {
        let key = want.key();
        if let Some(announce) = self.announces.get(&key)
            && let Some(Ok(bytes)) = &*announce.borrow()
        {
            return Some(bytes.clone());
        }
        self.recent.get(&key)
    }

    /// Registers a reader's demand for a group. Fails with `Shutdown` after `close`.
    pub(crate) fn demand(&mut self, want: &GroupRef) -> Result<Wanted, FetchError> {
        if self.closed {
            return Err(FetchError::Shutdown);
        }
        if let Some(bytes) = self.here(want) {
            return Ok(Wanted::Here(bytes));
        }
        let (joined, ticket) = self.scheduler.demand(want);
        let waiter = self.announce(want.key()).subscribe();
        Ok(Wanted::Coming(joined, ticket, waiter))
    }

    fn announce(&mut self, key: Key) -> &Announce {
        self.announces.entry(key).or_insert_with(|| watch::Sender::new(None))
    }

    /// Unregisters a reader.
    pub(crate) fn leave(&mut self, ticket: &Ticket) {
        self.scheduler.leave(ticket);
        self.tidy(ticket.key());
    }

    /// Drops the announcement of a group that is no longer queued or in flight.
    pub(crate) fn tidy(&mut self, key: &Key) {
        if !self.scheduler.has(key) {
            self.announces.remove(key);
        }
    }

    /// Queues a group for read-ahead. Returns false if the queue is full.
    pub(crate) fn hint(&mut self, want: &GroupRef) -> bool {
        self.closed || self.recent.get(&want.key()).is_some() || self.scheduler.hint(want)
    }

    pub(crate) fn next(&mut self, now: Moment) -> Option<Action> {
        if self.closed { None } else { self.scheduler.next(now) }
    }

    /// Returns whether a reader waits for this group.
    pub(crate) fn is_waited_for(&self, key: &Key) -> bool {
        self.announces.get(key).is_some_and(|announce| announce.receiver_count() > 0)
    }

    /// Publishes a decoded group to its readers, and to later ones until `forget`.
    pub(crate) fn landed(&mut self, want: &GroupRef, bytes: Bytes) {
        self.scheduler.landed(&want.key());
        self.announce(want.key()).send_replace(Some(Ok(bytes)));
    }

    /// Ends a fetch once the cache insert has finished. `keep` holds the bytes if the cache
    /// rejected them; they stay in memory for a while.
    pub(crate) fn forget(&mut self, now: Moment, want: &GroupRef, keep: Option<Bytes>) {
        let kept = if keep.is_some() { Kept::Nowhere } else { Kept::Cached };
        self.scheduler.forget(now, &want.key(), kept);
        self.announces.remove(&want.key());
        if let Some(bytes) = keep.filter(|_| !self.closed) {
            self.recent.put(want.key(), bytes);
        }
    }

    /// Fails all readers of a group.
    pub(crate) fn fail(&mut self, key: &Key, error: FetchError) {
        if let Some(announce) = self.announces.remove(key) {
            announce.send_replace(Some(Err(error)));
        }
    }

    /// Stops all fetching and fails all queued readers with `Shutdown`.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.recent.clear();
        self.lists.clear();
        for key in self.scheduler.close() {
            self.fail(&key, FetchError::Shutdown);
        }
    }

    pub(crate) fn gauges(&self) -> Gauges {
        let (flights, buffer_bytes) = self.scheduler.gauges();
        Gauges { flights, buffer_bytes, queued: self.scheduler.queued_by_class() }
    }
}
