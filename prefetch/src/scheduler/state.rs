//! The scheduler: what is queued, what is under way, and what comes next.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::flights::{Company, Flight, Place, Pool, Running};
use super::link::{Link, LinkEstimate, Readers};
use super::span::Span;
use super::types::{
    Action, Joined, Looked, Moment, Plan, Request, RequestId, Room, Ticket, Touched, Urgency, Why,
    WorkFigures, WorkId,
};
use super::work::{Ready, Work};
use crate::limits::FetchLimits;
use crate::want::{Class, GroupRef, Key};

/// See the module `scheduler`.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) limits: FetchLimits,
    pub(super) link: Link,
    pub(super) flights: HashMap<Key, Flight>,
    pub(super) requests: HashMap<RequestId, Running>,
    pub(super) demand: VecDeque<Key>,
    pub(super) read_ahead: VecDeque<Key>,
    pub(super) works: HashMap<WorkId, Work>,
    /// Those that have something left, in the order in which they came.
    active: Vec<WorkId>,
    pub(super) pools: [Pool; 2],
    /// Stored bytes of requests ahead of readers that have not come yet.
    pub(super) ahead: u64,
    /// The same of all requests.
    pub(super) under_way: u64,
    pub(super) cancels: VecDeque<RequestId>,
    /// What came while the driver was looking, so that what it saw is out of date.
    pub(super) came_meanwhile: HashSet<Key>,
    pub(super) looks: usize,
    next_request: u64,
    next_flight: u64,
    /// Mounts under way, for which nothing may be in the way that nobody waits for.
    mounting: usize,
    pub(super) closed: bool,
}

/// Which budget a class takes from.
pub(super) fn pool(class: Class) -> usize {
    usize::from(class != Class::Demand)
}

impl Scheduler {
    /// Nothing to do yet.
    pub fn new(limits: FetchLimits) -> Self {
        Self {
            limits,
            link: Link::new(),
            flights: HashMap::new(),
            requests: HashMap::new(),
            demand: VecDeque::new(),
            read_ahead: VecDeque::new(),
            works: HashMap::new(),
            active: Vec::new(),
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

    /// A snapshot is about to be mounted: what has to be fetched before it can be attached is waited
    /// for. Until [`Self::mounted`], nothing is begun that nobody waits for.
    pub fn mounting(&mut self) {
        self.mounting += 1;
    }

    /// It is mounted, or will not be.
    pub fn mounted(&mut self) {
        self.mounting = self.mounting.saturating_sub(1);
    }

    /// A snapshot is attached. What is less urgent waits for its plan, for 2 s at most.
    pub fn attach(&mut self, now: Moment, id: WorkId, urgency: Urgency) {
        // It shares fairly from now on, whatever others had before.
        let active = self.active.iter().filter_map(|id| self.works.get(id));
        let served = active.map(|work| work.served).min().unwrap_or(0);
        self.works.insert(id, Work::new(urgency, now, served));
        self.activate(id);
    }

    /// Sets, or replaces, the order in which a snapshot is loaded.
    pub fn plan(&mut self, id: WorkId, plan: Plan) {
        if let Some(work) = self.works.get_mut(&id) {
            work.set(plan);
            self.activate(id);
        }
    }

    /// A snapshot is detached: nothing is loaded for it any more, and what only it wanted is
    /// cancelled.
    pub fn detach(&mut self, id: WorkId) {
        if self.works.remove(&id).is_none() {
            return;
        }
        self.active.retain(|active| *active != id);
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

    /// A group of a snapshot was read for the first time since it was attached.
    pub fn touched(&mut self, now: Moment, id: WorkId, touch: &Touched) {
        if let Some(work) = self.works.get_mut(&id) {
            work.touched(now, touch);
            self.activate(id);
        }
    }

    fn activate(&mut self, id: WorkId) {
        if !self.active.contains(&id) {
            self.active.push(id);
        }
    }

    /// The driver has looked: see [`Action::Look`].
    pub fn looked(&mut self, now: Moment, id: WorkId, mut looked: Looked) {
        self.looks = self.looks.saturating_sub(1);
        if let Some(work) = self.works.get_mut(&id) {
            let mut flying = 0;
            if looked.room == Room::There {
                looked.missing.retain(|(number, want)| {
                    let Some(flight) = self.flights.get_mut(&want.key()) else {
                        return !self.came_meanwhile.contains(&want.key());
                    };
                    flight.parked.push((id, *number));
                    flying += 1;
                    false
                });
            }
            work.looked(now, looked, flying);
        }
        if self.looks == 0 {
            self.came_meanwhile.clear();
        }
    }

    /// A reader wants a group. It counts as waiting until [`Self::leave`].
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

    /// A flight of a group, which it takes out of the queues of all snapshots: the first that had it
    /// is its origin.
    fn flight(&mut self, want: GroupRef, class: Class) -> Flight {
        self.next_flight += 1;
        let mut flight = Flight::queued(want, class, self.next_flight);
        let key = want.key();
        for id in &self.active {
            let Some(work) = self.works.get_mut(id) else { continue };
            let Some(ready) = work.take(&key) else { continue };
            match flight.origin {
                None => flight.origin = Some((*id, ready)),
                Some(_) => flight.parked.push((*id, ready.number)),
            }
        }
        flight
    }

    /// A reader waits no longer, because it has the group, an error, or no more interest.
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

    /// Forgets a group that did not come, and leaves it to the snapshot that would have loaded it.
    pub(super) fn drop_flight(&mut self, key: &Key) {
        if let Some((id, ready)) = self.gone(key) {
            self.later(id, ready.number);
        }
    }

    /// Forgets a group that did not come. Gives its origin; other snapshots look at it again.
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
            self.activate(id);
        }
    }

    /// The store has failed a snapshot.
    pub(super) fn work_failed(
        &mut self,
        now: Moment,
        id: WorkId,
        groups: impl IntoIterator<Item = Ready>,
    ) {
        if let Some(work) = self.works.get_mut(&id) {
            work.failed(now, groups);
            self.activate(id);
        }
    }

    /// A sequential reader will want a group. False if there is no room for the hint.
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

    /// What is to be done next. To be called until there is nothing.
    pub fn next(&mut self, now: Moment) -> Option<Action> {
        if let Some(id) = self.cancels.pop_front() {
            return Some(Action::Cancel(id));
        }
        if self.closed {
            return None;
        }
        if !self.demand.is_empty() {
            // While a demand waits for room, nothing else gets any.
            return self.queued(Class::Demand).map(Action::Fetch);
        }
        if let Some(request) = self.queued(Class::ReadAhead) {
            return Some(Action::Fetch(request));
        }
        if !self.read_ahead.is_empty() {
            return None;
        }
        self.background(now)
    }

    /// How many bytes a request ahead of readers may have now; `None`: there may be none.
    fn room_ahead(&self) -> Option<u64> {
        // Those who wait for what is being loaded ahead are served best by going on with it.
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
            // Neighbours on both sides, until nothing more fits.
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

    /// The next of what no reader has asked for: the most urgent class alone, even if that has to be
    /// waited for.
    fn background(&mut self, now: Moment) -> Option<Action> {
        if self.mounting > 0 {
            return None;
        }
        self.active.retain(|id| {
            let work = self.works.get_mut(id);
            work.is_some_and(|work| {
                work.skip_taken();
                work.class().is_some()
            })
        });
        let awake = self.active.iter().filter_map(|id| {
            let work = self.works.get(id).filter(|work| work.is_awake(now))?;
            Some((*id, work, work.class()?))
        });
        let mut awake: Vec<_> = awake.collect();
        let class = awake.iter().map(|(_, _, class)| *class).min()?;
        awake.retain(|(_, _, of)| *of == class);
        // The newest directory first; of the others, whoever has had least.
        awake.sort_by_key(|(id, work, _)| match class {
            Class::Directory => (0, u64::MAX - id.0),
            _ => (work.served, id.0),
        });
        let turns: Vec<WorkId> = awake.iter().map(|(id, ..)| *id).collect();
        for id in turns {
            let work = self.works.get_mut(&id)?;
            if work.wants_look(now)
                && let Some((groups, class)) = work.look()
            {
                self.looks += 1;
                return Some(Action::Look { work: id, groups, class });
            }
            match self.load(id, class) {
                Load::Request(request) => return Some(Action::Fetch(request)),
                // What is smaller does not overtake it.
                Load::NoRoom => return None,
                Load::Nothing => {}
            }
            let waits = self.works.get(&id).is_some_and(Work::is_looking);
            if class == Class::Directory && waits {
                return None;
            }
        }
        None
    }

    /// A request for what comes next of one snapshot.
    fn load(&mut self, id: WorkId, class: Class) -> Load {
        let Some(work) = self.works.get_mut(&id) else { return Load::Nothing };
        let first = loop {
            let Some(first) = work.first().filter(|ready| ready.class == class) else {
                return Load::Nothing;
            };
            let Some(flight) = self.flights.get_mut(&first.want.key()) else { break first };
            work.take_first();
            flight.parked.push((id, first.number));
        };
        let pool = self.pools.get(pool(first.class));
        let room = pool.and_then(|pool| pool.room(first.want.buffer_bytes()));
        let (Some(len), Some(room)) = (self.room_ahead(), room) else { return Load::NoRoom };
        Load::Request(self.load_from(id, first, len, room))
    }

    /// A request of `len` bytes at most for a group and its neighbours, with so much room for buffers.
    fn load_from(&mut self, id: WorkId, first: Ready, len: u64, room: u64) -> Request {
        let mut span = Span::of(first.want, len, self.limits.gap_bytes, room);
        let mut readies = vec![first];
        if let Some(work) = self.works.get_mut(&id) {
            work.take_first();
            work.take_beside(&first, &mut span, &mut readies);
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

    /// When [`Self::next`] may have something to do although nothing else happens.
    pub fn wakes_at(&self, now: Moment) -> Option<Moment> {
        let works = self.active.iter().filter_map(|id| self.works.get(id));
        works.filter_map(|work| work.wakes_at(now)).min()
    }

    /// What the link is taken to be.
    pub fn link(&self) -> LinkEstimate {
        self.link.estimate()
    }

    /// Whether a group is on its way.
    pub fn has(&self, key: &Key) -> bool {
        self.flights.contains_key(key)
    }

    /// How much prefetching would have under way now, and in how large requests, in bytes.
    pub fn window(&self) -> (u64, u64) {
        (self.link.window(Readers::Idle), self.link.request_bytes(Readers::Idle))
    }

    /// What was done for a snapshot.
    pub fn work(&self, now: Moment, id: WorkId) -> Option<WorkFigures> {
        self.works.get(&id).map(|work| work.figures(now))
    }

    /// Groups that wait for their turn and are known by what they are, by class.
    pub fn queued_by_class(&self) -> [u64; Class::ALL.len()] {
        let mut queued = [0; Class::ALL.len()];
        let mut add = |class: Class, count: usize| {
            if let Some(place) = queued.get_mut(class.place()) {
                *place += count as u64;
            }
        };
        add(Class::Demand, self.demand.len());
        add(Class::ReadAhead, self.read_ahead.len());
        for id in &self.active {
            for (class, count) in self.works.get(id).into_iter().flat_map(Work::queued) {
                add(class, count);
            }
        }
        queued
    }

    /// Groups on their way, and bytes of buffers.
    pub fn gauges(&self) -> (u64, u64) {
        let bytes = self.pools.iter().map(|pool| pool.bytes).sum();
        (self.flights.len() as u64, bytes)
    }

    /// A reader has waited for bytes that were fetched for it alone.
    pub fn served(&mut self, now: Moment, waited: Duration, bytes: u64) {
        self.link.served(now, waited, bytes);
    }

    /// Nothing is begun from now on. Gives the groups that were queued, which are forgotten.
    pub fn close(&mut self) -> Vec<Key> {
        self.closed = true;
        self.works.clear();
        self.active.clear();
        let queued: Vec<Key> = self.demand.drain(..).chain(self.read_ahead.drain(..)).collect();
        for key in &queued {
            self.flights.remove(key);
        }
        queued
    }
}

/// What can be begun for a snapshot.
enum Load {
    Request(Request),
    /// It has to wait until there is room, and so has what is less urgent.
    NoRoom,
    Nothing,
}

/// The failure of a request, as far as it matters to what is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// The store did not give the bytes.
    Store,
    /// It was cancelled.
    Cancelled,
}
