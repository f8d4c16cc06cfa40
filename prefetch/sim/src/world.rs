//! Runs a simulation: the event loop, and the scheduler's driver in virtual time.
//!
//! The steps follow `fetcher.rs`, `table.rs` and `batch.rs` in `inlay-prefetch`, in the same order;
//! a task there is a chain of events here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use inlay_prefetch::scheduler::{Action, Moment, Probed, RequestId, Room, Scheduler, WorkId};
use inlay_prefetch::{Class, GroupRef};

use crate::check::View;
use crate::link::{Nanos, Sign, SimulatedLink, scaled};
use crate::readers::Reading;
use crate::reference::{Books, Held};
use crate::requests::{DecodeJob, Run, Threads};
use crate::scenario::{Begins, HostModel, Scenario, Until};

/// More events than any scenario has: exceeding it means an endless loop.
const EVENTS_MAX: u64 = 20_000_000;

/// An event at a known time.
#[derive(Debug)]
pub(crate) enum Event {
    Attach(usize),
    Plan(usize, usize),
    Detach(usize),
    /// A reader has finished thinking; its read reaches the driver; it polls for the answer.
    Wake(usize),
    Read(usize),
    Poll(usize),
    /// A reader gives up waiting for its n-th touch.
    GiveUp(usize, usize),
    /// The driver's cache probe runs; its result reaches the scheduler.
    See(WorkId, Vec<u32>, Class),
    Probed(WorkId, Probed),
    /// A request's task starts; a cancellation takes effect.
    Begin(RequestId),
    Stopped(RequestId),
    Decoded(DecodeJob),
    Inserted(RequestId),
    Alarm,
}

#[derive(Debug)]
struct Due {
    at: Nanos,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Result of a simulation.
#[derive(Debug, Clone, Default)]
pub struct SimulationOutcome {
    /// When each reader finished.
    pub done: Vec<Duration>,
    /// Wait time of each touch that was not cached, by reader.
    pub waits: Vec<Vec<Duration>>,
    /// Stored bytes requested.
    pub asked_bytes: u64,
    /// Requests to the store.
    pub requests: u64,
    /// Of these, demand requests.
    pub demands: u64,
    /// How long responses were being transferred.
    pub busy: Duration,
    /// Bytes transferred.
    pub passed: u64,
    /// When it ended.
    pub end: Duration,
    /// Number of events.
    pub events: u64,
}

/// State of a simulation.
pub(crate) struct World {
    pub(crate) now: Nanos,
    heap: BinaryHeap<Reverse<Due>>,
    events: u64,
    numbered: u64,
    pub(crate) rng: fastrand::Rng,
    pub(crate) scenario: Scenario,
    pub(crate) scheduler: Scheduler,
    pub(crate) link: SimulatedLink,
    pub(crate) books: Books,
    pub(crate) threads: Threads,
    pub(crate) runs: BTreeMap<RequestId, Run>,
    pub(crate) readers: Vec<Reading>,
    alarm: Option<Nanos>,
    next_work: u64,
    pub(crate) outcome: SimulationOutcome,
}

pub(crate) fn moment(now: Nanos) -> Moment {
    Moment(Duration::from_nanos(now))
}

pub(crate) fn nanos(time: Duration) -> Nanos {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs a scenario to its end. Panics with the latest events if the scheduler breaks an invariant.
pub fn run(scenario: Scenario) -> SimulationOutcome {
    let mut world = World::new(scenario);
    while world.step() {}
    world.finish()
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut rng = fastrand::Rng::with_seed(scenario.seed);
        let mut world = Self {
            now: 0,
            heap: BinaryHeap::new(),
            events: 0,
            numbered: 0,
            scheduler: Scheduler::new(scenario.limits),
            link: SimulatedLink::new(scenario.link.clone(), rng.u64(..)),
            books: Books::new(&scenario),
            threads: Threads::new(&scenario.limits),
            runs: BTreeMap::new(),
            readers: scenario.readers.iter().map(|_| Reading::default()).collect(),
            alarm: None,
            next_work: 0,
            outcome: SimulationOutcome::default(),
            rng,
            scenario,
        };
        let count = world.readers.len();
        world.outcome.done = vec![Duration::ZERO; count];
        world.outcome.waits = vec![Vec::new(); count];
        world.script();
        world
    }

    /// Queues all events with a time known in advance.
    fn script(&mut self) {
        let mut events = Vec::new();
        for (place, script) in self.scenario.snapshots.iter().enumerate() {
            let Some(attach) = script.attach else { continue };
            events.push((attach, Event::Attach(place)));
            let plans = script.plans.iter().enumerate();
            events.extend(plans.map(|(plan, (at, _))| (*at, Event::Plan(place, plan))));
            events.extend(script.detach.map(|at| (at, Event::Detach(place))));
        }
        for (place, reader) in self.scenario.readers.iter().enumerate() {
            if let (Begins::At(at), Some(touch)) = (reader.begins, reader.touches.first()) {
                events.push((at + touch.think, Event::Wake(place)));
            }
        }
        for (at, event) in events {
            self.at(nanos(at), event);
        }
    }

    pub(crate) fn at(&mut self, at: Nanos, event: Event) {
        let number = self.numbered;
        self.numbered += 1;
        self.heap.push(Reverse(Due { at: at.max(self.now), number, event }));
    }

    pub(crate) fn after(&mut self, delay: Nanos, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Draws a duration from half to one and a half times `about`.
    pub(crate) fn draw(&mut self, about: Nanos) -> Nanos {
        scaled(about, 0.5 + self.rng.f64())
    }

    /// Returns the duration of a step with the given cost per group and rate in bytes per second.
    pub(crate) fn work_time(&mut self, cost: (Duration, f64), bytes: u32) -> Nanos {
        let each = Duration::from_secs_f64(f64::from(bytes) / cost.1);
        self.draw(nanos(cost.0 + each))
    }

    /// Processes the next event. Returns false at the end.
    fn step(&mut self) -> bool {
        self.events += 1;
        if self.events > EVENTS_MAX {
            self.books.broken(self.now, "there is no end of it");
        }
        let reads = |place: &usize| !self.readers[*place].done;
        if self.scenario.until == Until::Read && !(0..self.readers.len()).any(|one| reads(&one)) {
            return false;
        }
        let event_at = self.heap.peek().map(|Reverse(due)| due.at);
        match (self.link.next_at(), event_at) {
            (None, None) => return false,
            (Some(link), event) if event.is_none_or(|event| link <= event) => {
                self.now = self.now.max(link);
                for sign in self.link.advance(self.now) {
                    self.sign(sign);
                }
            }
            _ => {
                let Some(Reverse(due)) = self.heap.pop() else { return false };
                self.now = due.at;
                self.happens(due.event);
            }
        }
        true
    }

    fn sign(&mut self, sign: Sign) {
        match sign {
            Sign::First(id) => self.first_byte(id),
            Sign::Bytes(id, bytes) => self.bytes(id, bytes),
            Sign::End(id, bytes) => self.whole(id, bytes),
            Sign::Failed(id) => self.failed(id),
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Attach(place) => self.attach(place),
            Event::Plan(place, plan) => self.plan(place, plan),
            Event::Detach(place) => self.detach(place),
            Event::Wake(reader) => self.wake(reader),
            Event::Read(reader) => self.read(reader),
            Event::Poll(reader) => self.poll(reader),
            Event::GiveUp(reader, touch) => self.give_up(reader, touch),
            Event::See(work, groups, class) => self.see(work, &groups, class),
            Event::Probed(work, probed) => {
                self.books.looks -= 1;
                if probed.room == Room::None {
                    self.books.no_room(self.now, work);
                }
                self.scheduler.probed(moment(self.now), work, probed);
                self.pump();
            }
            Event::Begin(id) => self.begin(id),
            Event::Stopped(id) => self.stopped(id),
            Event::Decoded(job) => self.decoded(job),
            Event::Inserted(id) => self.inserted(id),
            Event::Alarm => self.pump(),
        }
    }

    fn attach(&mut self, place: usize) {
        self.next_work += 1;
        let id = WorkId(self.next_work);
        self.books.log(self.now, "attach", id.0, place as u64);
        self.books.works[place].attach(self.now, id);
        let urgency = self.books.works[place].urgency;
        // As in the driver, no pump: there is nothing to load yet.
        self.scheduler.attach(moment(self.now), id, urgency);
    }

    fn plan(&mut self, place: usize, plan: usize) {
        let Some(id) = self.books.works[place].id else { return };
        self.books.log(self.now, "plan", id.0, plan as u64);
        let plan = self.scenario.snapshots[place].plans[plan].1.clone();
        if self.books.looks > 0 {
            // Groups of a probe in progress keep their order from an earlier plan.
            self.books.claim_all(place);
        }
        self.books.works[place].set(&plan);
        self.scheduler.plan(id, plan);
        self.pump();
    }

    fn detach(&mut self, place: usize) {
        let Some(id) = self.books.works[place].id.take() else { return };
        self.books.log(self.now, "detach", id.0, 0);
        self.scheduler.detach(id);
        self.pump();
        let going_on = self.runs.values().filter(|run| run.is_going_on());
        let going_on = going_on.map(|run| (&run.request, &run.wants[..]));
        self.view().detached(id, going_on);
    }

    pub(crate) fn view(&self) -> View<'_> {
        View {
            now: self.now,
            limits: &self.scenario.limits,
            books: &self.books,
            scheduler: &self.scheduler,
        }
    }

    /// Executes the scheduler's actions until none is left.
    pub(crate) fn pump(&mut self) {
        while let Some(action) = self.scheduler.next(moment(self.now)) {
            match action {
                Action::Fetch(request) => {
                    let len = request.range.end - request.range.start;
                    self.books.log(self.now, request.class.name(), request.id.0, len);
                    self.view().fetch(&request);
                    self.start(request);
                }
                Action::Probe { work, groups, class } => {
                    self.books.looks += 1;
                    let delay = self.draw(nanos(self.scenario.host.look) / 2);
                    self.after(delay, Event::See(work, groups, class));
                }
                Action::Cancel(id) => {
                    self.books.log(self.now, "cancel", id.0, 0);
                    if let Some(run) = self.runs.get_mut(&id) {
                        run.stop();
                    }
                    let delay = self.rng.u64(0..20_000);
                    self.after(delay, Event::Stopped(id));
                }
            }
        }
        self.view().rests();
        self.set_alarm();
    }

    fn set_alarm(&mut self) {
        let Some(at) = self.scheduler.wakes_at() else { return };
        let at = nanos(at.0);
        if self.alarm.is_some_and(|alarm| self.now < alarm && alarm <= at) {
            return;
        }
        self.alarm = Some(at);
        self.at(at + 1_000_000, Event::Alarm);
    }

    fn see(&mut self, work: WorkId, groups: &[u32], class: Class) {
        let probed = match self.books.work(work) {
            Some(state) => {
                let missing = groups.iter().filter_map(|number| {
                    let group = self.books.of(*state.groups.get(*number as usize)?);
                    (group.held != Held::Cached).then_some((*number, group.want))
                });
                let missing: Vec<(u32, GroupRef)> = missing.collect();
                let HostModel { full, .. } = &self.scenario.host;
                let is_full = full.iter().any(|range| range.contains(&moment(self.now).0));
                let none = is_full && class == Class::Rest && !missing.is_empty();
                Probed { missing, room: if none { Room::None } else { Room::There } }
            }
            None => Probed::default(),
        };
        let delay = self.draw(nanos(self.scenario.host.look) / 2);
        self.after(delay, Event::Probed(work, probed));
    }

    fn finish(mut self) -> SimulationOutcome {
        if self.scenario.until == Until::Quiet {
            if let Some(stuck) = self.readers.iter().position(Reading::is_stuck) {
                self.books.broken(self.now, &format!("reader {stuck} waits for ever"));
            }
            self.view().quiet();
        }
        self.outcome.end = Duration::from_nanos(self.now);
        self.outcome.busy = Duration::from_nanos(self.link.busy);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let passed = self.link.passed as u64;
        self.outcome.passed = passed;
        self.outcome.events = self.events;
        self.outcome
    }
}
