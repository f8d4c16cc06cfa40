//! The scheduler: queues, requests in flight, and the choice of the next action.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::flights::{Company, Flight, Place, Pool, Running};
use super::link::{Link, LinkEstimate, Readers};
use super::span::Span;
use super::standings::{Standings, Waiting};
use super::types::{
    Action, Joined, Moment, Plan, Probed, Request, RequestId, Room, Ticket, Touched, Urgency, Why,
    WorkId, WorkProgress,
};
use super::work::{Ready, Work};
use crate::limits::FetchLimits;
use crate::want::{Class, GroupRef, Key};

/// The scheduler; see the module `scheduler`.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) limits: FetchLimits,
    pub(super) link: Link,
    pub(super) flights: HashMap<Key, Flight>,
    pub(super) requests: HashMap<RequestId, Running>,
    pub(super) demand: VecDeque<Key>,
    pub(super) read_ahead: VecDeque<Key>,
    pub(super) works: HashMap<WorkId, Work>,
    /// Snapshots with work left, ordered by whose turn it is.
    standings: Standings,
    pub(super) waiting: Waiting,
    /// Latest time passed by the driver.
    clock: Moment,
    /// Number of times one of `works` was visited.
    visits: u64,
    pub(super) pools: [Pool; 2],
    /// Stored bytes of prefetch requests that have not arrived yet.
    pub(super) ahead: u64,
    /// Stored bytes of all requests that have not arrived yet.
    pub(super) under_way: u64,
    pub(super) cancels: VecDeque<RequestId>,
    /// Groups cached while a probe was running: the probe may have missed them.
    pub(super) came_meanwhile: HashSet<Key>,
    pub(super) looks: usize,
    next_request: u64,
    next_flight: u64,
    /// Mounts in progress; no prefetch starts while there are any.
    mounting: usize,
    pub(super) closed: bool,
}

/// Index of the pool that a class draws from: 0 for demand, 1 for prefetch.
pub(super) fn pool(class: Class) -> usize {
    usize::from(class != Class::Demand)
}

impl Scheduler {
    /// Creates an idle scheduler.
    pub fn new(limits: FetchLimits) -> Self {
        Self {
            limits,
            link: Link::new(),
            flights: HashMap::new(),
            requests: HashMap::new(),
            demand: VecDeque::new(),
            read_ahead: VecDeque::new(),
            works: HashMap::new(),
            standings: Standings::default(),
            waiting: Waiting::default(),
            clock: Moment::default(),
            visits: 0,
            pools: [
                Pool::new(limits.demand_requests, limits.demand_bytes),
                Pool::new(limits.ahead_requests, limits.ahead_bytes),
            ],
            ahead: 0,
            under_way: 0,
            cancels: VecDeque::new(),
            came_meanwhile: HashSet::new(),
            looks: 0,
            next_request: 0,
            next_flight: 0,
            mounting: 0,
            closed: false,
        }
    }

    /// Begins a mount: a caller waits for data that must be fetched before the snapshot can be
    /// attached. Until [`Self::mounted`], no prefetch request starts.
    pub fn mounting(&mut self) {
        self.mounting += 1;
    }

    /// Ends a mount, successful or not.
    pub fn mounted(&mut self) {
        self.mounting = self.mounting.saturating_sub(1);
    }

    /// Adds an attached snapshot. Lower classes wait for its plan, for at most 2 s.
    pub fn attach(&mut self, now: Moment, id: WorkId, urgency: Urgency) {
        self.tick(now);
        // Start at the smallest share, so that a new snapshot shares fairly from now on.
        let served = self.standings.least_served().unwrap_or(0);
        self.works.insert(id, Work::new(id, urgency, now, served));
        self.file(id);
    }

    pub(super) fn tick(&mut self, now: Moment) {
        self.clock = self.clock.max(now);
    }

    /// Refiles a snapshot in the standings. Must be called after every change to its `Work`.
    pub(super) fn file(&mut self, id: WorkId) {
        self.visits += 1;
        let standing = self.works.get_mut(&id).and_then(|work| work.standing(self.clock));
        self.standings.file(id, standing);
    }

    /// Returns how often snapshots were visited so far: the cost of the scheduler's events.
    pub fn visits(&self) -> u64 {
        self.visits
    }

    /// Sets or replaces a snapshot's load order.
    pub fn plan(&mut self, id: WorkId, plan: Plan) {
        if let Some(work) = self.works.get_mut(&id) {
            work.set(plan, &mut self.waiting);
            self.file(id);
        }
    }

    /// Removes a detached snapshot: stops its loading and cancels requests that only it needs.
    pub fn detach(&mut self, id: WorkId) {
        let Some(work) = self.works.remove(&id) else { return };
        work.leave_queues(&mut self.waiting);
        self.standings.file(id, None);
        let useless = self.requests.iter().filter(|(_, request)| {
            request.work == Some(id)
                && !request.cancelled
                && request.keys.iter().all(|key| {
                    self.flights.get(key).is_none_or(|flight| {
                        flight.waiters == 0 && matches!(flight.place, Place::Running(_))
                    })
                })
        });
        let mut useless: Vec<RequestId> = useless.map(|(id, _)| *id).collect();
        useless.sort_unstable();
        for id in useless {
            self.cancel(id);
        }
    }

    pub(super) fn cancel(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.cancelled = true;
            self.cancels.push_back(id);
        }
    }

    /// Reports the first read of a group since its snapshot was attached.
    pub fn touched(&mut self, now: Moment, id: WorkId, touch: &Touched) {
        if let Some(work) = self.works.get_mut(&id) {
            work.touched(now, touch);
            self.tick(now);
            self.file(id);
        }
    }

    /// Reports the result of a cache probe; see [`Action::Probe`].
    pub fn probed(&mut self, now: Moment, id: WorkId, mut probed: Probed) {
        self.looks = self.looks.saturating_sub(1);
        if let Some(work) = self.works.get_mut(&id) {
            let mut flying = 0;
            if probed.room == Room::There {
                probed.missing.retain(|(number, want)| {
                    let Some(flight) = self.flights.get_mut(&want.key()) else {
                        return !self.came_meanwhile.contains(&want.key());
                    };
                    flight.parked.push((id, *number));
                    flying += 1;
                    false
                });
            }
            work.probed(now, probed, flying, &mut self.waiting);
            self.tick(now);
            self.file(id);
        }
        if self.looks == 0 {
            self.came_meanwhile.clear();
        }
    }

    /// Registers a reader's demand for a group. The reader counts as waiting until [`Self::leave`].
    pub fn demand(&mut self, want: &GroupRef) -> (Joined, Ticket) {
        let key = want.key();
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.waiters += 1;
            let (class, ticket) = (flight.class, Ticket { key, flight: flight.number });
            if flight.place == Place::Queued && class != Class::Demand {
                flight.class = Class::Demand;
                self.read_ahead.retain(|queued| *queued != key);
                self.demand.push_back(key);
                return (Joined::Promoted(class), ticket);
            }
            return (Joined::Flying(class), ticket);
        }
        let flight = Flight { waiters: 1, ..self.flight(*want, Class::Demand) };
        let origin = flight.origin.as_ref();
        let joined = origin.map_or(Joined::Queued, |(_, ready)| Joined::Promoted(ready.class));
        let ticket = Ticket { key, flight: flight.number };
        self.flights.insert(key, flight);
        self.demand.push_back(key);
        (joined, ticket)
    }

    /// Creates a flight for a group and removes the group from the queues of all snapshots. The
    /// first snapshot that had it queued becomes the flight's origin, the others are parked on it.
    fn flight(&mut self, want: GroupRef, class: Class) -> Flight {
        self.next_flight += 1;
        let mut flight = Flight::queued(want, class, self.next_flight);
        let key = want.key();
        for id in self.waiting.take(&key) {
            let Some(ready) = self.works.get_mut(&id).and_then(|work| work.take(&key)) else {
                continue;
            };
            match flight.origin {
                None => flight.origin = Some((id, ready)),
                Some(_) => flight.parked.push((id, ready.number)),
            }
            self.file(id);
        }
        flight
    }

    /// Unregisters a reader: it has the group or an error, or gave up. Cancels the demand if no
    /// reader is left.
    pub fn leave(&mut self, ticket: &Ticket) {
        let key = &ticket.key;
        let Some(flight) = self.flights.get_mut(key) else { return };
        if flight.number != ticket.flight {
            return;
        }
        flight.waiters = flight.waiters.saturating_sub(1);
        if flight.waiters > 0 || flight.place == Place::Landed {
            return;
        }
        match flight.place {
            Place::Queued if flight.class == Class::Demand => {
                self.demand.retain(|queued| queued != key);
                self.drop_flight(key);
            }
            Place::Running(id) => {
                let abandoned = self.requests.get(&id).is_some_and(|request| {
                    request.class == Class::Demand
                        && !request.cancelled
                        && request.keys.iter().all(|key| {
                            self.flights.get(key).is_none_or(|flight| flight.waiters == 0)
                        })
                });
                if abandoned {
                    self.cancel(id);
                }
            }
            Place::Queued | Place::Landed => {}
        }
    }

    /// Drops a group that did not arrive and returns it to the snapshot that would have loaded it.
    pub(super) fn drop_flight(&mut self, key: &Key) {
        if let Some((id, ready)) = self.gone(key) {
            self.later(id, ready.number);
        }
    }

    /// Drops a group that did not arrive. Returns its origin; parked snapshots probe it again.
    pub(super) fn gone(&mut self, key: &Key) -> Option<(WorkId, Ready)> {
        let Flight { origin, parked, .. } = self.flights.remove(key)?;
        for (id, number) in parked {
            self.later(id, number);
        }
        origin
    }

    fn later(&mut self, id: WorkId, number: u32) {
        if let Some(work) = self.works.get_mut(&id) {
            work.later(number);
            self.file(id);
        }
    }

    /// Reports failed groups to the snapshot they were loaded for.
    pub(super) fn work_failed(
        &mut self,
        now: Moment,
        id: WorkId,
        groups: impl IntoIterator<Item = Ready>,
    ) {
        if let Some(work) = self.works.get_mut(&id) {
            work.failed(now, groups, &mut self.waiting);
            self.tick(now);
            self.file(id);
        }
    }

    /// Queues a group for a sequential reader. Returns false if the queue is full.
    pub fn hint(&mut self, want: &GroupRef) -> bool {
        let key = want.key();
        if self.closed || self.flights.contains_key(&key) {
            return true;
        }
        if self.read_ahead.len() >= self.limits.read_ahead_queue {
            return false;
        }
        let flight = self.flight(*want, Class::ReadAhead);
        self.flights.insert(key, flight);
        self.read_ahead.push_back(key);
        true
    }

    /// Returns the next action. The driver calls this until it returns `None`.
    pub fn next(&mut self, now: Moment) -> Option<Action> {
        self.tick(now);
        while let Some(id) = self.standings.due(self.clock) {
            self.file(id);
        }
        if let Some(id) = self.cancels.pop_front() {
            return Some(Action::Cancel(id));
        }
        if self.closed {
            return None;
        }
        if !self.demand.is_empty() {
            // While a demand waits for room, no lower class gets any.
            return self.queued(Class::Demand).map(Action::Fetch);
        }
        if let Some(request) = self.queued(Class::ReadAhead) {
            return Some(Action::Fetch(request));
        }
        if !self.read_ahead.is_empty() {
            return None;
        }
        // `clock`, not `now`: snapshots were refiled as of `clock`, and a late caller's `now` may
        // be earlier.
        self.background(self.clock)
    }

    /// Maximum bytes of the next prefetch request; `None` if the window is full.
    fn room_ahead(&self) -> Option<u64> {
        // Readers that wait for prefetched groups are served best by continuing to prefetch, so
        // only demand requests in flight count as waiting readers.
        let demand = self.pools.first().is_some_and(|pool| pool.requests > 0);
        let readers = if demand { Readers::Wait } else { Readers::Idle };
        let len = self.link.request_bytes(readers).min(self.limits.request_bytes);
        let fits = self.ahead == 0 || self.ahead.saturating_add(len) <= self.link.window(readers);
        fits.then_some(len)
    }

    fn queued(&mut self, class: Class) -> Option<Request> {
        let (queue, len) = match class {
            Class::Demand => (&self.demand, Some(self.limits.request_bytes)),
            _ => (&self.read_ahead, self.room_ahead()),
        };
        let first = self.flights.get(queue.front()?)?;
        let room = self.pools.get(pool(class))?.room(first.want.buffer_bytes())?;
        let mut span = Span::of(first.want, len?, self.limits.gap_bytes, room);
        let mut taken = vec![first.want.key()];
        if first.company == Company::Any {
            // Add neighbours on both sides until no more fit.
            let mut before = 0;
            while taken.len() > before {
                before = taken.len();
                for key in queue {
                    if let Some(flight) = self.flights.get(key)
                        && flight.company == Company::Any
                        && !taken.contains(key)
                        && span.add(&flight.want)
                    {
                        taken.push(*key);
                    }
                }
            }
        }
        let queue = match class {
            Class::Demand => &mut self.demand,
            _ => &mut self.read_ahead,
        };
        queue.retain(|key| !taken.contains(key));
        let why = if class == Class::Demand { Why::Reader } else { Why::Sequential };
        Some(self.start(class, None, why, span))
    }

    /// Returns the next background action. Considers the most urgent class only, even if it has to
    /// wait.
    fn background(&mut self, now: Moment) -> Option<Action> {
        if self.mounting > 0 {
            return None;
        }
        loop {
            let class = self.standings.class()?;
            // No snapshot can act: all that are awake are being probed.
            let id = self.standings.turn(class)?;
            let before = self.standings.get(id).copied();
            let work = self.works.get_mut(&id)?;
            if work.wants_look(now)
                && let Some((groups, class)) = work.probe()
            {
                self.looks += 1;
                self.file(id);
                return Some(Action::Probe { work: id, groups, class });
            }
            let load = self.load(id, class);
            self.file(id);
            match load {
                Load::Request(request) => return Some(Action::Fetch(request)),
                // A smaller request must not overtake it.
                Load::NoRoom => return None,
                // The head of its queue was already in flight for others; retry.
                Load::Passed => {}
                Load::Nothing => {
                    let waits = self.works.get(&id).is_some_and(Work::is_looking);
                    let changed = self.standings.get(id) != before.as_ref();
                    if (class == Class::Directory && waits) || !changed {
                        return None;
                    }
                }
            }
        }
    }

    /// Builds the next request of one snapshot.
    fn load(&mut self, id: WorkId, class: Class) -> Load {
        let Some(work) = self.works.get_mut(&id) else { return Load::Nothing };
        let mut nothing = Load::Nothing;
        let first = loop {
            let Some(first) = work.first().filter(|ready| ready.class == class) else {
                return nothing;
            };
            let Some(flight) = self.flights.get_mut(&first.want.key()) else { break first };
            work.take_first(&mut self.waiting);
            flight.parked.push((id, first.number));
            nothing = Load::Passed;
        };
        let pool = self.pools.get(pool(first.class));
        let room = pool.and_then(|pool| pool.room(first.want.buffer_bytes()));
        let (Some(len), Some(room)) = (self.room_ahead(), room) else { return Load::NoRoom };
        Load::Request(self.load_from(id, first, len, room))
    }

    /// Builds a request of at most `len` bytes for a group and its neighbours; `room` is the
    /// available buffer space.
    fn load_from(&mut self, id: WorkId, first: Ready, len: u64, room: u64) -> Request {
        let mut span = Span::of(first.want, len, self.limits.gap_bytes, room);
        let mut readies = vec![first];
        if let Some(work) = self.works.get_mut(&id) {
            work.take_first(&mut self.waiting);
            work.take_beside(&first, &mut span, &mut readies, &mut self.waiting);
        }
        for ready in &readies {
            let mut flight = self.flight(ready.want, ready.class);
            let other = flight.origin.replace((id, *ready));
            flight.parked.extend(other.map(|(id, ready)| (id, ready.number)));
            self.flights.insert(ready.want.key(), flight);
        }
        let request = self.start(first.class, Some(id), first.why, span);
        if let Some(work) = self.works.get_mut(&id) {
            work.served = work.served.saturating_add(request.range.end - request.range.start);
        }
        request
    }

    fn start(&mut self, class: Class, work: Option<WorkId>, why: Why, span: Span) -> Request {
        let (blob, range, wants, buffer_bytes) = span.finish();
        let id = RequestId(self.next_request);
        self.next_request += 1;
        for want in &wants {
            if let Some(flight) = self.flights.get_mut(&want.key()) {
                flight.place = Place::Running(id);
            }
        }
        let len = range.end - range.start;
        if let Some(pool) = self.pools.get_mut(pool(class)) {
            pool.take(buffer_bytes);
        }
        self.under_way = self.under_way.saturating_add(len);
        if class != Class::Demand {
            self.ahead = self.ahead.saturating_add(len);
        }
        let keys = wants.iter().map(GroupRef::key).collect();
        self.requests.insert(id, Running { class, work, keys, left: len, cancelled: false });
        Request { id, class, work, why, blob, range, wants, buffer_bytes }
    }

    /// Returns when [`Self::next`] may have an action even if no event arrives. May be in the past
    /// if `next` was not called since.
    pub fn wakes_at(&self) -> Option<Moment> {
        self.standings.wakes_at()
    }

    /// Returns the current estimate of the link.
    pub fn link(&self) -> LinkEstimate {
        self.link.estimate()
    }

    /// Returns whether a group is queued by a reader or in flight.
    pub fn has(&self, key: &Key) -> bool {
        self.flights.contains_key(key)
    }

    /// Returns the prefetch window and request size, in bytes, with no reader waiting.
    pub fn window(&self) -> (u64, u64) {
        (self.link.window(Readers::Idle), self.link.request_bytes(Readers::Idle))
    }

    /// Returns the progress of a snapshot.
    pub fn work(&self, now: Moment, id: WorkId) -> Option<WorkProgress> {
        self.works.get(&id).map(|work| work.stats(now))
    }

    /// Returns the number of queued groups by class. Groups not probed yet are not counted.
    pub fn queued_by_class(&self) -> [u64; Class::ALL.len()] {
        let mut queued = [0; Class::ALL.len()];
        let mut add = |class: Class, count: usize| {
            if let Some(place) = queued.get_mut(class.place()) {
                *place += count as u64;
            }
        };
        add(Class::Demand, self.demand.len());
        add(Class::ReadAhead, self.read_ahead.len());
        for id in self.standings.ids() {
            for (class, count) in self.works.get(&id).into_iter().flat_map(Work::queued) {
                add(class, count);
            }
        }
        queued
    }

    /// Returns the number of flights and the buffer bytes in use.
    pub fn gauges(&self) -> (u64, u64) {
        let bytes = self.pools.iter().map(|pool| pool.bytes).sum();
        (self.flights.len() as u64, bytes)
    }

    /// Reports that a reader waited `waited` for a demand request of `bytes`.
    pub fn served(&mut self, now: Moment, waited: Duration, bytes: u64) {
        self.link.served(now, waited, bytes);
    }

    /// Stops all scheduling. Drops the queued groups and returns their keys.
    pub fn close(&mut self) -> Vec<Key> {
        self.closed = true;
        self.works.clear();
        self.standings = Standings::default();
        self.waiting = Waiting::default();
        let queued: Vec<Key> = self.demand.drain(..).chain(self.read_ahead.drain(..)).collect();
        for key in &queued {
            self.flights.remove(key);
        }
        queued
    }
}

/// What a snapshot's queue offers.
enum Load {
    Request(Request),
    /// The request has to wait for room, and so do lower classes.
    NoRoom,
    /// The head of the queue was already in flight for others.
    Passed,
    Nothing,
}

/// Why a request failed, as far as rescheduling is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// The store returned an error.
    Store,
    /// The request was cancelled.
    Cancelled,
}
