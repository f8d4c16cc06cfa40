//! Tracks groups, snapshots and limits independently of the scheduler. The invariants are checked
//! against these books, not against the scheduler's own state.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use inlay_prefetch::scheduler::{Extent, Plan, RequestId, Urgency, WorkId};
use inlay_prefetch::{Class, GroupRef, Key};

use crate::link::Nanos;
use crate::scenario::{Scenario, SnapshotScript, Told};

/// Attempts per group without a reader, as documented.
const TRIES: u32 = 2;
/// Maximum distance from a read group at which neighbours are loaded, as documented.
const BESIDE_MAX: u32 = 32;
/// How long no new group must be read before an image's rest is loaded, and the longest wait for
/// that.
const CALM: Nanos = 1_000_000_000;
const CALM_MAX: Nanos = 30_000_000_000;
/// How long lower classes wait for a plan, as documented.
const PREPARE: Nanos = 2_000_000_000;
/// How long a snapshot may back off after a store or cache failure, as documented.
const REST_STORE: Nanos = 30_000_000_000;
const REST_CACHE: Nanos = 5_000_000_000;

/// Index of a group in the books.
pub(crate) type Gid = u32;

/// Where this host has a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Nowhere,
    /// Readers have it, the cache does not yet.
    Landed,
    Cached,
    /// The cache rejected it.
    Memory,
}

/// State of a group.
#[derive(Debug)]
pub(crate) struct GroupState {
    pub(crate) want: GroupRef,
    pub(crate) held: Held,
    /// The request that it is part of, until it is cached.
    pub(crate) busy: Option<RequestId>,
    /// Readers waiting for it.
    pub(crate) waiting: Vec<usize>,
    /// Queued for read-ahead.
    pub(crate) hinted: bool,
    /// It was in flight or requested before. Then its snapshot probes it again last.
    pub(crate) claimed: bool,
    /// Number of requests that failed for good or returned corrupt bytes.
    failures: u32,
}

impl GroupState {
    fn new(want: GroupRef) -> Self {
        Self {
            want,
            held: Held::Nowhere,
            busy: None,
            waiting: Vec::new(),
            hinted: false,
            claimed: false,
            failures: 0,
        }
    }

    /// Returns whether a snapshot that contains it still needs it.
    pub(crate) fn is_missing(&self) -> bool {
        let given_up = self.failures >= TRIES;
        !matches!(self.held, Held::Cached | Held::Memory) && !given_up
    }

    /// Returns whether it could be requested now.
    fn is_fetchable(&self) -> bool {
        self.is_missing() && self.busy.is_none()
    }
}

/// State of a snapshot.
#[derive(Debug)]
pub(crate) struct WorkState {
    pub(crate) urgency: Urgency,
    pub(crate) told: Told,
    pub(crate) groups: Vec<Gid>,
    /// Set while it is attached.
    pub(crate) id: Option<WorkId>,
    pub(crate) plan: Option<Plan>,
    /// Largest extent of all plans: groups already probed for an earlier plan are still loaded.
    extent_most: Extent,
    /// Groups named first by the current plan, and by any plan.
    first: Vec<bool>,
    first_ever: Vec<bool>,
    touched: Vec<bool>,
    beside: Vec<bool>,
    attached_at: Nanos,
    calm_at: Nanos,
    /// Latest end of a permitted back-off.
    rests_until: Nanos,
}

impl WorkState {
    fn new(script: &SnapshotScript, groups: Vec<Gid>) -> Self {
        let none = vec![false; groups.len()];
        Self {
            urgency: script.urgency,
            told: script.touches,
            groups,
            id: None,
            plan: None,
            extent_most: Extent::Nothing,
            first: none.clone(),
            first_ever: none.clone(),
            touched: none.clone(),
            beside: none,
            attached_at: 0,
            calm_at: 0,
            rests_until: 0,
        }
    }

    pub(crate) fn attach(&mut self, now: Nanos, id: WorkId) {
        self.id = Some(id);
        self.attached_at = now;
        self.calm_at = now + CALM;
    }

    pub(crate) fn set(&mut self, plan: &Plan) {
        self.first.fill(false);
        for number in plan.first.iter().filter(|number| **number < plan.groups) {
            self.first[*number as usize] = true;
            self.first_ever[*number as usize] = true;
        }
        self.extent_most = match (self.extent_most, plan.extent) {
            (Extent::All, _) | (_, Extent::All) => Extent::All,
            (Extent::Likely, _) | (_, Extent::Likely) => Extent::Likely,
            _ => Extent::Nothing,
        };
        self.plan = Some(plan.clone());
    }

    /// Records a touch. Returns whether it is the first touch of a group since the attach.
    pub(crate) fn touch(&mut self, now: Nanos, number: u32) -> bool {
        if self.id.is_none() || self.touched[number as usize] {
            return false;
        }
        self.touched[number as usize] = true;
        let end = self.groups.len().min((number + 1 + BESIDE_MAX) as usize);
        self.beside[number.saturating_sub(BESIDE_MAX) as usize..end].fill(true);
        self.calm_at = now + CALM;
        true
    }

    /// Returns whether its start counts as finished.
    pub(crate) fn is_calm(&self, now: Nanos) -> bool {
        now >= self.calm_at.min(self.attached_at + CALM_MAX)
    }

    /// Returns whether lower classes must wait for its plan.
    pub(crate) fn is_preparing(&self, now: Nanos) -> bool {
        self.id.is_some() && self.plan.is_none() && now < self.attached_at + PREPARE
    }

    pub(crate) fn may_rest(&self, now: Nanos) -> bool {
        now <= self.rests_until
    }

    fn rest(&mut self, until: Nanos) {
        self.rests_until = self.rests_until.max(until);
    }

    /// Returns whether a group may be loaded for this class.
    pub(crate) fn may_load(&self, number: u32, class: Class) -> bool {
        let likely = self.first_ever[number as usize] || self.beside[number as usize];
        let extent = match self.extent_most {
            Extent::Nothing => false,
            Extent::Likely => likely,
            Extent::All => true,
        };
        let urgency = match class {
            Class::Directory => self.urgency == Urgency::Directory,
            Class::Profile => self.urgency == Urgency::Image && likely,
            Class::Rest => self.urgency == Urgency::Image,
            Class::Demand | Class::ReadAhead => true,
        };
        extent && urgency
    }

    /// Returns the groups that the plan covers, with their numbers.
    fn planned(&self, scope: Scope) -> impl Iterator<Item = (u32, Gid)> {
        let extent = self.plan.as_ref().map_or(Extent::Nothing, |plan| plan.extent);
        let all = extent == Extent::All && scope == Scope::All;
        let none = extent == Extent::Nothing;
        let numbered = (0u32..).zip(&self.groups).zip(&self.first);
        numbered
            .filter(move |(_, first)| !none && (all || **first))
            .map(|((number, gid), _)| (number, *gid))
    }
}

/// Part of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Groups named first.
    First,
    /// All groups to load.
    All,
}

/// Requests and buffer bytes in use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) requests: usize,
    pub(crate) bytes: u64,
}

/// The simulation's books.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) groups: Vec<GroupState>,
    gids: HashMap<Key, Gid>,
    pub(crate) works: Vec<WorkState>,
    /// Groups with waiting readers, and groups queued for read-ahead.
    pub(crate) wanted: Vec<Gid>,
    pub(crate) hinted: Vec<Gid>,
    pub(crate) demand: Used,
    pub(crate) ahead: Used,
    /// Bytes of prefetch requests that have not arrived.
    pub(crate) ahead_under_way: u64,
    pub(crate) looks: usize,
    log: VecDeque<(Nanos, &'static str, u64, u64)>,
    seed: u64,
}

/// Number of latest events printed when an invariant is broken.
const LOG: usize = 60;

impl Books {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut books = Self {
            groups: Vec::new(),
            gids: HashMap::new(),
            works: Vec::new(),
            wanted: Vec::new(),
            hinted: Vec::new(),
            demand: Used::default(),
            ahead: Used::default(),
            ahead_under_way: 0,
            looks: 0,
            log: VecDeque::new(),
            seed: scenario.seed,
        };
        for script in &scenario.snapshots {
            let gids = script.snapshot.groups.iter().map(|want| books.intern(*want)).collect();
            books.works.push(WorkState::new(script, gids));
        }
        for (snapshot, number) in &scenario.here {
            let gid = books.works[*snapshot].groups[*number as usize];
            books.groups[gid as usize].held = Held::Cached;
        }
        books
    }

    fn intern(&mut self, want: GroupRef) -> Gid {
        let next = u32::try_from(self.groups.len()).unwrap();
        let gid = *self.gids.entry(want.key()).or_insert(next);
        if gid == next {
            self.groups.push(GroupState::new(want));
        }
        gid
    }

    pub(crate) fn gid(&self, key: &Key) -> Gid {
        self.gids[key]
    }

    pub(crate) fn group(&mut self, gid: Gid) -> &mut GroupState {
        &mut self.groups[gid as usize]
    }

    pub(crate) fn of(&self, gid: Gid) -> &GroupState {
        &self.groups[gid as usize]
    }

    pub(crate) fn used(&mut self, class: Class) -> &mut Used {
        if class == Class::Demand { &mut self.demand } else { &mut self.ahead }
    }

    pub(crate) fn work(&self, id: WorkId) -> Option<&WorkState> {
        self.works.iter().find(|work| work.id == Some(id))
    }

    /// Records that a reader waits for a group.
    pub(crate) fn wait(&mut self, gid: Gid, reader: usize) {
        self.unhint(gid);
        let group = self.group(gid);
        group.claimed = true;
        group.waiting.push(reader);
        if group.waiting.len() == 1 {
            self.wanted.push(gid);
        }
    }

    /// Records that a reader no longer waits.
    pub(crate) fn stop_waiting(&mut self, gid: Gid, reader: usize) {
        let group = self.group(gid);
        if let Some(place) = group.waiting.iter().position(|one| *one == reader) {
            group.waiting.remove(place);
        }
        if group.waiting.is_empty() {
            self.wanted.retain(|one| *one != gid);
        }
    }

    /// Removes and returns all readers of a group that was answered.
    pub(crate) fn answer(&mut self, gid: Gid) -> Vec<usize> {
        self.wanted.retain(|one| *one != gid);
        std::mem::take(&mut self.group(gid).waiting)
    }

    /// Records that all groups of a snapshot may be probed last.
    pub(crate) fn claim_all(&mut self, place: usize) {
        for gid in self.works[place].groups.clone() {
            self.group(gid).claimed = true;
        }
    }

    pub(crate) fn hint(&mut self, gid: Gid) {
        let group = self.group(gid);
        group.claimed = true;
        if !group.hinted {
            group.hinted = true;
            self.hinted.push(gid);
        }
    }

    pub(crate) fn unhint(&mut self, gid: Gid) {
        if std::mem::take(&mut self.group(gid).hinted) {
            self.hinted.retain(|one| *one != gid);
        }
    }

    /// Records that the store failed a group or returned corrupt bytes.
    pub(crate) fn store_failed(&mut self, now: Nanos, gid: Gid) {
        self.group(gid).failures += 1;
        for work in self.works.iter_mut().filter(|work| work.groups.contains(&gid)) {
            work.rest(now + REST_STORE);
        }
    }

    /// Records that the cache rejected a group.
    pub(crate) fn cache_failed(&mut self, now: Nanos, gid: Gid) {
        self.group(gid).held = Held::Memory;
        for work in self.works.iter_mut().filter(|work| work.groups.contains(&gid)) {
            work.rest(now + REST_CACHE);
        }
    }

    /// Records that the cache has no room for a snapshot.
    pub(crate) fn no_room(&mut self, now: Nanos, id: WorkId) {
        if let Some(work) = self.works.iter_mut().find(|work| work.id == Some(id)) {
            work.rest(now + REST_CACHE);
        }
    }

    /// Returns groups with waiting readers that no request covers.
    pub(crate) fn unserved(&self) -> impl Iterator<Item = &GroupState> {
        self.wanted.iter().map(|gid| self.of(*gid)).filter(|group| group.busy.is_none())
    }

    /// Returns the number of a group that could be fetched for a snapshot.
    pub(crate) fn fetchable(&self, work: &WorkState, scope: Scope) -> Option<u32> {
        let mut planned = work.planned(scope);
        let fetchable = |gid: Gid| {
            let group = self.of(gid);
            group.is_fetchable() && (scope == Scope::All || !group.claimed)
        };
        planned.find(|(_, gid)| fetchable(*gid)).map(|(number, _)| number)
    }

    /// Returns the number of a group that a snapshot still lacks at the end.
    pub(crate) fn missing(&self, work: &WorkState) -> Option<u32> {
        let mut planned = work.planned(Scope::All);
        planned.find(|(_, gid)| self.of(*gid).is_missing()).map(|(number, _)| number)
    }

    pub(crate) fn log(&mut self, now: Nanos, what: &'static str, one: u64, other: u64) {
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back((now, what, one, other));
    }

    /// Panics with the latest events: an invariant is broken.
    pub(crate) fn broken(&self, now: Nanos, what: &str) -> ! {
        let lines = self.log.iter().map(|(at, what, one, other)| {
            format!("{:>16?} {what} {one} {other}\n", Duration::from_nanos(*at))
        });
        let log: String = lines.collect();
        panic!("seed {} at {:?}: {what}\n{log}", self.seed, Duration::from_nanos(now));
    }
}
