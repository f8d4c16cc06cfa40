//! Every group that is on its way: who waits for it, and which is asked for next.
//!
//! A state machine without I/O and without tasks. `Fetcher` holds it in a lock and runs the batches
//! that it gives out.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use inlay_store::ids::BlobId;
use tokio::sync::watch;

use crate::error::FetchError;
use crate::limits::FetchLimits;
use crate::recent::Recent;
use crate::want::{Class, GroupRef, Key};

/// What a fetch came to.
pub(crate) type Outcome = Result<Bytes, FetchError>;
/// Where the outcome appears. It also knows whether anybody waits.
pub(crate) type Announce = Arc<watch::Sender<Option<Outcome>>>;
/// A reader's end. Dropping it is how a reader goes away.
pub(crate) type Waiter = watch::Receiver<Option<Outcome>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    limits: FetchLimits,
    flights: HashMap<Key, Flight>,
    demand: Lane,
    read_ahead: Lane,
    recent: Recent,
    closed: bool,
}

#[derive(Debug)]
struct Flight {
    want: GroupRef,
    class: Class,
    phase: Phase,
    company: Company,
    /// How often it came with wrong bytes.
    corrupt: u32,
    announce: Announce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Running,
    /// Its readers have it; it stays until the cache has it, so that nobody fetches it meanwhile.
    Landed,
}

/// Whether a group may be fetched in one request with its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    Any,
    /// A request failed that held it: others' troubles must not be its own.
    Alone,
}

/// The queue of one class, and what runs of it.
#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Key>,
    requests: usize,
    bytes: u64,
}

/// What a want has become.
pub(crate) enum Joined {
    /// It is in memory.
    Here(Bytes),
    /// It was on its way.
    Flying(Waiter),
    /// It was queued for read-ahead, and now it is a demand.
    Promoted(Waiter),
    /// It is queued.
    Queued(Waiter),
}

/// One request to the store.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) class: Class,
    /// Of one blob, sorted by offset.
    pub(crate) wants: Vec<(GroupRef, Announce)>,
    /// Bytes of buffers, to be given back with `release`.
    pub(crate) bytes: u64,
}

impl Batch {
    /// The bytes of the blob that hold all groups of `wants`.
    pub(crate) fn range_of(wants: &[(GroupRef, Announce)]) -> Range<u64> {
        let start = wants.iter().map(|(want, _)| want.group.offset).min().unwrap_or(0);
        let end = wants.iter().map(|(want, _)| want.end()).max().unwrap_or(0);
        start..end
    }
}

/// Why a fetch did not succeed, as far as it matters to what is done next.
pub(crate) enum Trouble {
    /// The request failed. It held so many groups.
    Request { error: FetchError, class: Class, groups: usize },
    /// This group's bytes were wrong. The error is made once it is known that it is final.
    Corrupt(Box<dyn FnOnce(u32) -> FetchError + Send>),
}

/// What was done about a fetch that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is queued again.
    Again,
    /// Its readers have the error.
    Failed,
    /// Nobody waits for it.
    Dropped,
}

/// A request that is being put together.
struct Span {
    blob: BlobId,
    end: u64,
    /// Where it must end.
    end_max: u64,
    gap: u64,
    /// Bytes of buffers.
    bytes: u64,
    bytes_max: u64,
}

impl Span {
    fn of(first: &GroupRef, limits: &FetchLimits, bytes_max: u64) -> Self {
        Self {
            blob: first.blob,
            end: first.end(),
            end_max: first.group.offset.saturating_add(limits.request_bytes),
            gap: limits.gap_bytes,
            bytes: first.buffer_bytes(),
            bytes_max,
        }
    }

    fn takes(&self, other: &Flight) -> bool {
        let want = &other.want;
        other.company == Company::Any
            && want.blob == self.blob
            && (self.end..=self.end.saturating_add(self.gap)).contains(&want.group.offset)
            && want.end() <= self.end_max
            && self.bytes + want.buffer_bytes() <= self.bytes_max
    }

    /// Takes a group that can come along out of the queue.
    fn neighbour(&self, queue: &mut VecDeque<Key>, flights: &HashMap<Key, Flight>) -> Option<Key> {
        let takes = |key| flights.get(key).is_some_and(|other| self.takes(other));
        let place = queue.iter().position(takes)?;
        queue.remove(place)
    }

    fn take(&mut self, want: &GroupRef) {
        self.end = want.end();
        self.bytes += want.buffer_bytes();
    }
}

impl Flight {
    fn start(&mut self) -> (GroupRef, Announce) {
        self.phase = Phase::Running;
        (self.want, Arc::clone(&self.announce))
    }
}

impl Table {
    pub(crate) fn new(limits: FetchLimits) -> Self {
        Self {
            limits,
            flights: HashMap::new(),
            demand: Lane::default(),
            read_ahead: Lane::default(),
            recent: Recent::new(limits.recent_bytes),
            closed: false,
        }
    }

    /// The group, if it is in memory.
    pub(crate) fn here(&mut self, want: &GroupRef) -> Option<Bytes> {
        let key = want.key();
        if let Some(flight) = self.flights.get(&key)
            && let Some(Ok(bytes)) = &*flight.announce.borrow()
        {
            return Some(bytes.clone());
        }
        self.recent.get(&key)
    }

    /// A reader wants a group.
    pub(crate) fn demand(&mut self, want: &GroupRef) -> Result<Joined, FetchError> {
        if self.closed {
            return Err(FetchError::Shutdown);
        }
        let key = want.key();
        if let Some(flight) = self.flights.get_mut(&key) {
            let waiter = flight.announce.subscribe();
            if flight.phase != Phase::Queued || flight.class == Class::Demand {
                return Ok(Joined::Flying(waiter));
            }
            flight.class = Class::Demand;
            self.read_ahead.queue.retain(|queued| *queued != key);
            self.demand.queue.push_back(key);
            return Ok(Joined::Promoted(waiter));
        }
        if let Some(bytes) = self.recent.get(&key) {
            return Ok(Joined::Here(bytes));
        }
        let waiter = self.add(*want, Class::Demand).subscribe();
        self.demand.queue.push_back(key);
        Ok(Joined::Queued(waiter))
    }

    /// A group should be read ahead. False if there is no room for the hint.
    pub(crate) fn hint(&mut self, want: &GroupRef) -> bool {
        let key = want.key();
        if self.closed || self.flights.contains_key(&key) || self.recent.get(&key).is_some() {
            return true;
        }
        if self.read_ahead.queue.len() >= self.limits.read_ahead_queue {
            return false;
        }
        self.add(*want, Class::ReadAhead);
        self.read_ahead.queue.push_back(key);
        true
    }

    fn add(&mut self, want: GroupRef, class: Class) -> Announce {
        let announce = Arc::new(watch::Sender::new(None));
        let flight = Flight {
            want,
            class,
            phase: Phase::Queued,
            company: Company::Any,
            corrupt: 0,
            announce: Arc::clone(&announce),
        };
        self.flights.insert(want.key(), flight);
        announce
    }

    /// The next request to make, if there is one and there is room for it. Demand goes first, and
    /// nothing is read ahead while a demand waits for room.
    pub(crate) fn next_batch(&mut self) -> Option<Batch> {
        if self.closed {
            return None;
        }
        self.drop_abandoned();
        if !self.demand.queue.is_empty() {
            return self.batch(Class::Demand);
        }
        self.batch(Class::ReadAhead)
    }

    /// Takes demands that nobody waits for any more out of the queue.
    fn drop_abandoned(&mut self) {
        let flights = &mut self.flights;
        self.demand.queue.retain(|key| {
            let wanted = flights.get(key).is_some_and(|f| f.announce.receiver_count() > 0);
            if !wanted {
                flights.remove(key);
            }
            wanted
        });
    }

    fn batch(&mut self, class: Class) -> Option<Batch> {
        let limits = self.limits;
        let (requests_max, bytes_max) = match class {
            Class::Demand => (limits.demand_requests, limits.demand_bytes),
            Class::ReadAhead => (limits.read_ahead_requests, limits.read_ahead_bytes),
        };
        let lane = match class {
            Class::Demand => &mut self.demand,
            Class::ReadAhead => &mut self.read_ahead,
        };
        if lane.requests >= requests_max.max(1) {
            return None;
        }
        let first = self.flights.get_mut(lane.queue.front()?)?;
        let room = bytes_max.saturating_sub(lane.bytes);
        // When nothing else runs, a group larger than all the room there is goes alone.
        if lane.bytes > 0 && first.want.buffer_bytes() > room {
            return None;
        }
        lane.queue.pop_front();
        let mut span = Span::of(&first.want, &limits, room);
        let mut wants = vec![first.start()];
        if first.company == Company::Any {
            while let Some(next) = span.neighbour(&mut lane.queue, &self.flights)
                && let Some(flight) = self.flights.get_mut(&next)
            {
                span.take(&flight.want);
                wants.push(flight.start());
            }
        }
        lane.requests += 1;
        lane.bytes += span.bytes;
        Some(Batch { class, wants, bytes: span.bytes })
    }

    /// A request of `class` has ended.
    pub(crate) fn request_ended(&mut self, class: Class) {
        let lane = self.lane(class);
        lane.requests = lane.requests.saturating_sub(1);
    }

    /// Buffers of `class` are free again.
    pub(crate) fn release(&mut self, class: Class, bytes: u64) {
        let lane = self.lane(class);
        lane.bytes = lane.bytes.saturating_sub(bytes);
    }

    /// Gives up a request that nobody waits for. False if somebody does.
    pub(crate) fn abandon(&mut self, wants: &[(GroupRef, Announce)]) -> bool {
        if wants.iter().any(|(_, announce)| announce.receiver_count() > 0) {
            return false;
        }
        for (want, _) in wants {
            self.flights.remove(&want.key());
        }
        true
    }

    /// The group has come: its readers get it, and so does whoever asks until `cached`.
    pub(crate) fn landed(&mut self, want: &GroupRef, bytes: Bytes) {
        if let Some(flight) = self.flights.get_mut(&want.key()) {
            flight.phase = Phase::Landed;
            flight.announce.send_replace(Some(Ok(bytes)));
        }
    }

    /// The cache has taken the group. `Some`: it has not, and memory keeps it for a while.
    pub(crate) fn forget(&mut self, want: &GroupRef, keep: Option<Bytes>) {
        self.flights.remove(&want.key());
        if let Some(bytes) = keep.filter(|_| !self.closed) {
            self.recent.put(want.key(), bytes);
        }
    }

    /// The group has not come. Tries again for its readers where that can help.
    pub(crate) fn trouble(&mut self, want: &GroupRef, trouble: Trouble) -> Settled {
        let key = want.key();
        let Some(flight) = self.flights.get_mut(&key) else { return Settled::Dropped };
        if flight.announce.receiver_count() == 0 {
            self.flights.remove(&key);
            return Settled::Dropped;
        }
        let again = match &trouble {
            Trouble::Request { class, groups, .. } => {
                flight.company == Company::Any && (*groups > 1 || *class == Class::ReadAhead)
            }
            Trouble::Corrupt(_) => {
                flight.corrupt += 1;
                flight.corrupt <= self.limits.corrupt_retries
            }
        };
        if again && !self.closed {
            flight.company = Company::Alone;
            flight.class = Class::Demand;
            flight.phase = Phase::Queued;
            self.demand.queue.push_front(key);
            return Settled::Again;
        }
        let error = match trouble {
            _ if self.closed => FetchError::Shutdown,
            Trouble::Request { error, .. } => error,
            Trouble::Corrupt(error) => error(flight.corrupt),
        };
        let announce = Arc::clone(&flight.announce);
        self.flights.remove(&key);
        announce.send_replace(Some(Err(error)));
        Settled::Failed
    }

    /// Nothing is fetched from now on, and all who wait in the queues get an error.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.recent.clear();
        let queued: Vec<Key> =
            self.demand.queue.drain(..).chain(self.read_ahead.queue.drain(..)).collect();
        for flight in queued.iter().filter_map(|key| self.flights.remove(key)) {
            flight.announce.send_replace(Some(Err(FetchError::Shutdown)));
        }
    }

    /// Groups on their way, and bytes of buffers.
    pub(crate) fn gauges(&self) -> (u64, u64) {
        (self.flights.len() as u64, self.demand.bytes + self.read_ahead.bytes)
    }

    fn lane(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Demand => &mut self.demand,
            Class::ReadAhead => &mut self.read_ahead,
        }
    }
}
