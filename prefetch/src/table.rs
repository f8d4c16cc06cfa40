//! What the lock of a fetcher guards: the scheduler, and who is to be told of which group.

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

/// What a fetch came to.
pub(crate) type Outcome = Result<Bytes, FetchError>;
/// Where the outcome appears.
type Announce = watch::Sender<Option<Outcome>>;
/// A reader's end.
pub(crate) type Waiter = watch::Receiver<Option<Outcome>>;

/// See the module.
pub(crate) struct Table {
    pub(crate) scheduler: Scheduler,
    /// For groups on their way, as soon as a reader waits or the bytes are there.
    announces: HashMap<Key, Announce>,
    /// How requests under way are stopped.
    pub(crate) stops: HashMap<RequestId, CancellationToken>,
    pub(crate) lists: HashMap<WorkId, Arc<dyn GroupList>>,
    recent: Recent,
    /// When the table is to be looked at although nothing has happened.
    pub(crate) alarm: Option<Moment>,
    pub(crate) next_work: u64,
    pub(crate) closed: bool,
}

/// What a want has become.
pub(crate) enum Wanted {
    /// It is in memory.
    Here(Bytes),
    /// It is on its way.
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

    /// The group, if it is in memory.
    pub(crate) fn here(&mut self, want: &GroupRef) -> Option<Bytes> {
        let key = want.key();
        if let Some(announce) = self.announces.get(&key)
            && let Some(Ok(bytes)) = &*announce.borrow()
        {
            return Some(bytes.clone());
        }
        self.recent.get(&key)
    }

    /// A reader wants a group.
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

    /// A reader waits no longer.
    pub(crate) fn leave(&mut self, ticket: &Ticket) {
        self.scheduler.leave(ticket);
        self.tidy(ticket.key());
    }

    /// Forgets who is to be told of a group that is not on its way any more.
    pub(crate) fn tidy(&mut self, key: &Key) {
        if !self.scheduler.has(key) {
            self.announces.remove(key);
        }
    }

    /// A group should be read ahead. False if there is no room for the hint.
    pub(crate) fn hint(&mut self, want: &GroupRef) -> bool {
        self.closed || self.recent.get(&want.key()).is_some() || self.scheduler.hint(want)
    }

    pub(crate) fn next(&mut self, now: Moment) -> Option<Action> {
        if self.closed { None } else { self.scheduler.next(now) }
    }

    /// Whether a reader waits for this group.
    pub(crate) fn is_waited_for(&self, key: &Key) -> bool {
        self.announces.get(key).is_some_and(|announce| announce.receiver_count() > 0)
    }

    /// The group has come: its readers get it, and so does whoever asks until `forget`.
    pub(crate) fn landed(&mut self, want: &GroupRef, bytes: Bytes) {
        self.scheduler.landed(&want.key());
        self.announce(want.key()).send_replace(Some(Ok(bytes)));
    }

    /// The cache has taken the group. `Some`: it has not, and memory keeps it for a while.
    pub(crate) fn forget(&mut self, now: Moment, want: &GroupRef, keep: Option<Bytes>) {
        let kept = if keep.is_some() { Kept::Nowhere } else { Kept::Cached };
        self.scheduler.forget(now, &want.key(), kept);
        self.announces.remove(&want.key());
        if let Some(bytes) = keep.filter(|_| !self.closed) {
            self.recent.put(want.key(), bytes);
        }
    }

    /// Readers of a group get an error.
    pub(crate) fn fail(&mut self, key: &Key, error: FetchError) {
        if let Some(announce) = self.announces.remove(key) {
            announce.send_replace(Some(Err(error)));
        }
    }

    /// Nothing is fetched from now on, and all who wait in the queues get an error.
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
