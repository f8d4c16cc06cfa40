//! The load queue and progress of one snapshot.
//!
//! A group costs three bits, and four bytes more if it was named to come first. Only the next few
//! have a full `GroupRef`: the driver probes the cache for them and leaves out those it holds.

use std::collections::VecDeque;
use std::time::Duration;

use super::Moment;
use super::neighbours::Neighbours;
use super::span::Span;
use super::standings::{Standing, State, Waiting};
use super::types::{
    Extent, Known, Phase, Plan, Probed, Room, Touched, Urgency, Why, WorkId, WorkProgress,
};
use crate::want::{Class, GroupRef, Key};

/// Groups per cache probe, and the queue length below which the next probe is issued.
const LOOK: usize = 64;
const LOOK_BELOW: usize = 24;
/// Maximum number of probed groups in the queue. Above that, the oldest neighbours are moved to the
/// rest; groups that the plan names first stay.
const READY_MAX: usize = 192;
/// The rest of an image waits until no new group was read for this long, so that a starting program
/// has the link and the host's cores to itself,
const CALM: Duration = Duration::from_secs(1);
/// but for no longer than this.
const CALM_MAX: Duration = Duration::from_secs(30);
/// Maximum number of reads remembered until the plan arrives.
const EARLY_MAX: usize = 256;
/// Attempts per group without a reader.
const TRIES: u8 = 2;
/// Pause after a failure; doubles from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_LAST: Duration = Duration::from_secs(30);
/// Pause when the cache has no room.
const PAUSE_FULL: Duration = Duration::from_secs(5);
/// How long lower classes wait for a snapshot's plan.
const PREPARE: Duration = Duration::from_secs(2);

/// A probed group that is not cached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) number: u32,
    pub(super) want: GroupRef,
    pub(super) class: Class,
    pub(super) why: Why,
    tries: u8,
    /// Number of the probe that found it missing.
    look: u32,
}

/// The probe in progress.
#[derive(Debug)]
struct Looking {
    asked: Vec<(u32, Class, Why)>,
}

/// Background loading of one snapshot.
#[derive(Debug)]
pub(super) struct Work {
    id: WorkId,
    pub(super) urgency: Urgency,
    /// Stored bytes requested, for fairness between snapshots of a class.
    pub(super) served: u64,
    plan: Plan,
    /// Deadline for the plan; `None` once it has arrived.
    preparing: Option<Moment>,
    taken: Bits,
    /// Prefetched groups that no reader has touched yet.
    unused: Bits,
    touched: Bits,
    /// Next position in `plan.first`, and next group in tree order.
    first_next: u32,
    rest_next: u32,
    neighbours: Neighbours,
    /// Reads reported before the plan.
    early: Vec<Touched>,
    /// When the rest may be loaded: after the last new read, and at the latest.
    calm_at: Moment,
    calm_at_last: Moment,
    /// Groups dropped by another fetch, or displaced from the queue; probed again last.
    again: VecDeque<u32>,
    ready: VecDeque<Ready>,
    looking: Option<Looking>,
    looks: u32,
    /// Groups of a probe that found no room; probed again first.
    unanswered: Vec<(u32, Class, Why)>,
    rests_until: Option<Moment>,
    failures: u32,
    stats: WorkProgress,
}

impl Work {
    pub(super) fn new(id: WorkId, urgency: Urgency, now: Moment, served: u64) -> Self {
        Self {
            id,
            urgency,
            served,
            plan: Plan::default(),
            preparing: Some(now.after(PREPARE)),
            taken: Bits::default(),
            unused: Bits::default(),
            touched: Bits::default(),
            first_next: 0,
            rest_next: 0,
            neighbours: Neighbours::default(),
            early: Vec::new(),
            calm_at: now.after(CALM),
            calm_at_last: now.after(CALM_MAX),
            again: VecDeque::new(),
            ready: VecDeque::new(),
            looking: None,
            looks: 0,
            unanswered: Vec::new(),
            rests_until: None,
            failures: 0,
            stats: WorkProgress::default(),
        }
    }

    /// Sets or replaces the plan. Groups of a probe in progress keep their order from the old plan.
    pub(super) fn set(&mut self, plan: Plan, waiting: &mut Waiting) {
        self.stats.probed = self.stats.probed.saturating_sub(small(self.ready.len()));
        self.leave_queues(waiting);
        let queued = self.ready.drain(..).map(|ready| ready.number);
        let asked = self.unanswered.drain(..).map(|(number, ..)| number);
        // The new plan may name groups first that the old one had queued.
        for number in queued.chain(asked).chain(self.again.drain(..)) {
            self.taken.clear(number);
        }
        (self.first_next, self.rest_next) = (0, 0);
        self.preparing = None;
        self.taken.resize(plan.groups);
        self.unused.resize(plan.groups);
        self.touched.resize(plan.groups);
        self.stats.groups = plan.groups;
        self.stats.first = u32::try_from(plan.first.len()).unwrap_or(u32::MAX);
        self.plan = plan;
        for touch in std::mem::take(&mut self.early) {
            self.place(&touch);
        }
    }

    /// Removes the queued groups from the index by key.
    pub(super) fn leave_queues(&self, waiting: &mut Waiting) {
        for ready in &self.ready {
            waiting.remove(&ready.want.key(), self.id);
        }
    }

    /// Returns the snapshot's standing; `None` if nothing is left to load.
    pub(super) fn standing(&mut self, now: Moment) -> Option<Standing> {
        self.skip_taken();
        let class = self.class()?;
        let acts = || self.wants_look(now) || self.first().is_some_and(|next| next.class == class);
        let state = match self.is_awake(now) {
            false => State::Asleep,
            true if acts() => State::Acts,
            true => State::Waits,
        };
        Some(Standing { class, served: self.served, state, wakes: self.wakes_at(now) })
    }

    /// Returns the class of the next group, if any is left.
    pub(super) fn class(&self) -> Option<Class> {
        // Both queues are sorted by class.
        let next = self.ready.front().map(|ready| ready.class);
        let probed =
            self.looking.as_ref().and_then(|l| l.asked.first().map(|(_, class, _)| *class));
        // A group not probed yet may be more urgent than the probed ones.
        match next.into_iter().chain(probed).chain(self.peek()).min() {
            Some(class) => Some(class),
            None if self.preparing.is_some() => Some(self.first_class()),
            None => None,
        }
    }

    fn first_class(&self) -> Class {
        match self.urgency {
            Urgency::Directory => Class::Directory,
            Urgency::Image => Class::Profile,
        }
    }

    fn rest_class(&self) -> Class {
        match self.urgency {
            Urgency::Directory => Class::Directory,
            Urgency::Image => Class::Rest,
        }
    }

    /// Returns the class of the next group to probe.
    fn peek(&self) -> Option<Class> {
        if let Some((_, class, _)) = self.unanswered.first() {
            return Some(*class);
        }
        let first =
            (self.first_next as usize) < self.plan.first.len() || !self.neighbours.is_empty();
        match self.plan.extent {
            Extent::Nothing => None,
            _ if first => Some(self.first_class()),
            Extent::All if self.rest_next < self.plan.groups => Some(self.rest_class()),
            _ if !self.again.is_empty() => Some(self.rest_class()),
            _ => None,
        }
    }

    /// Returns whether it takes part in scheduling. A sleeping snapshot blocks no other.
    fn is_awake(&self, now: Moment) -> bool {
        let prepared = self.preparing.is_none_or(|until| now < until);
        let calm = self.is_calm(now) || self.class() != Some(Class::Rest);
        prepared && calm && self.rests_until.is_none_or(|until| now >= until)
    }

    fn is_calm(&self, now: Moment) -> bool {
        now >= self.calm_at.min(self.calm_at_last)
    }

    /// Returns the next time at which `is_awake` may change.
    fn wakes_at(&self, now: Moment) -> Option<Moment> {
        let calm = self.calm_at.min(self.calm_at_last);
        let moments = [self.rests_until, self.preparing, Some(calm)];
        moments.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Skips groups already taken, so that the next group is valid.
    fn skip_taken(&mut self) {
        self.neighbours.skip(|number| self.taken.get(number));
        let first = self.plan.first.get(self.first_next as usize..).unwrap_or_default();
        let taken = first.iter().take_while(|number| self.taken.get(**number)).count();
        self.first_next = self.first_next.saturating_add(small(taken));
        while self.rest_next < self.plan.groups && self.taken.get(self.rest_next) {
            self.rest_next += 1;
        }
    }

    /// Returns whether the driver should probe more groups.
    pub(super) fn wants_look(&self, now: Moment) -> bool {
        let Some(class) = self.peek().filter(|_| self.looking.is_none()) else { return false };
        let few = self.ready.len() < LOOK_BELOW;
        let urgent = self.ready.front().is_some_and(|ready| ready.class > class);
        // Neighbours of the last read are more likely than groups probed earlier.
        (few || urgent || self.neighbours.are_fresh())
            && (class != Class::Rest || self.is_calm(now))
    }

    /// Starts a probe: returns the groups, all of one class.
    pub(super) fn probe(&mut self) -> Option<(Vec<u32>, Class)> {
        let class = self.peek()?;
        let mut asked = std::mem::take(&mut self.unanswered);
        while asked.len() < LOOK && self.peek() == Some(class) {
            let Some((number, why)) = self.next_number() else { break };
            if self.taken.set(number) {
                asked.push((number, class, why));
            }
        }
        if asked.is_empty() {
            return None;
        }
        let groups = asked.iter().map(|(number, ..)| *number).collect();
        self.looks = self.looks.wrapping_add(1);
        self.looking = Some(Looking { asked });
        Some((groups, class))
    }

    fn next_number(&mut self) -> Option<(u32, Why)> {
        if let Some(number) = self.neighbours.pop() {
            return Some((number, Why::Beside));
        }
        if let Some(number) = self.plan.first.get(self.first_next as usize) {
            self.first_next += 1;
            return Some((*number, Why::First(self.first_next - 1)));
        }
        if self.plan.extent == Extent::All && self.rest_next < self.plan.groups {
            self.rest_next += 1;
            return Some((self.rest_next - 1, Why::Traversal));
        }
        let number = self.again.pop_front()?;
        self.taken.clear(number);
        Some((number, Why::Traversal))
    }

    /// Takes the result of a probe. Groups not in `missing` are cached, except `flying` groups,
    /// which are in flight.
    pub(super) fn probed(
        &mut self,
        now: Moment,
        probed: Probed,
        flying: usize,
        waiting: &mut Waiting,
    ) {
        let Some(Looking { asked }) = self.looking.take() else { return };
        if probed.room == Room::None {
            self.rest(now, PAUSE_FULL);
            self.unanswered = asked;
            return;
        }
        let (all, missing) = (asked.len(), probed.missing.len().min(asked.len()));
        self.stats.probed = self.stats.probed.saturating_add(small(all));
        let here = all.saturating_sub(missing + flying);
        self.stats.here = self.stats.here.saturating_add(small(here));
        let mut asked = asked.into_iter();
        for (number, want) in probed.missing {
            // Results are in the order of the probe; anything that was not asked for ends the scan.
            let Some((_, class, why)) = asked.find(|(one, ..)| *one == number) else { break };
            self.ready.push_back(Ready { number, want, class, why, tries: 0, look: self.looks });
            waiting.add(want.key(), self.id);
        }
        self.sort();
        self.forget_neighbours(waiting);
    }

    /// Moves the oldest neighbours to the rest while the queue is too long.
    fn forget_neighbours(&mut self, waiting: &mut Waiting) {
        while self.ready.len() > READY_MAX {
            let first = &self.plan.first;
            let oldest = self
                .ready
                .iter()
                .rposition(|ready| ready.why == Why::Beside && !first.contains(&ready.number));
            let Some(oldest) = oldest.and_then(|place| self.ready.remove(place)) else { return };
            waiting.remove(&oldest.want.key(), self.id);
            self.later(oldest.number);
        }
    }

    /// Restores the order: neighbours and retried groups may have been appended behind less urgent
    /// ones. Neighbours of the last read come first.
    fn sort(&mut self) {
        self.ready.make_contiguous().sort_by_key(|ready| {
            let beside = ready.why == Why::Beside;
            (ready.class, !beside, if beside { u32::MAX - ready.look } else { 0 })
        });
    }

    /// Returns whether lower classes must wait for it.
    pub(super) fn is_looking(&self) -> bool {
        self.looking.is_some() || self.preparing.is_some()
    }

    /// Returns the head of the queue.
    pub(super) fn first(&self) -> Option<Ready> {
        self.ready.front().copied()
    }

    /// Removes the head of the queue.
    pub(super) fn take_first(&mut self, waiting: &mut Waiting) {
        if let Some(first) = self.ready.pop_front() {
            waiting.remove(&first.want.key(), self.id);
        }
    }

    /// Removes the groups that fit into one request with `first`, until no more fit.
    pub(super) fn take_beside(
        &mut self,
        first: &Ready,
        span: &mut Span,
        taken: &mut Vec<Ready>,
        waiting: &mut Waiting,
    ) {
        let mut before = 0;
        while taken.len() > before {
            before = taken.len();
            self.ready.retain(|ready| {
                let takes = ready.class == first.class
                    && ready.tries == first.tries
                    && span.add(&ready.want);
                if takes {
                    waiting.remove(&ready.want.key(), self.id);
                    taken.push(*ready);
                }
                !takes
            });
        }
    }

    /// Removes the group with this key. The caller has already removed it from the index by key.
    pub(super) fn take(&mut self, key: &Key) -> Option<Ready> {
        let place = self.ready.iter().position(|ready| ready.want.key() == *key)?;
        self.ready.remove(place)
    }

    /// Puts a group back, to be probed last: the fetch it was parked on was dropped, or the queue
    /// was too long.
    pub(super) fn later(&mut self, number: u32) {
        self.stats.probed = self.stats.probed.saturating_sub(1);
        self.again.push_back(number);
    }

    /// Records the first read of a group; its neighbours will probably be read, too.
    pub(super) fn touched(&mut self, now: Moment, touch: &Touched) {
        self.calm_at = now.after(CALM);
        if self.preparing.is_some() && self.early.len() < EARLY_MAX {
            self.early.push(touch.clone());
        } else {
            self.place(touch);
        }
    }

    fn place(&mut self, touch: &Touched) {
        let again = !self.touched.set(touch.group);
        if self.unused.clear(touch.group) {
            let stored_len = u64::from(touch.stored_len);
            self.stats.used_bytes = self.stats.used_bytes.saturating_add(stored_len);
        }
        if again || self.plan.extent == Extent::Nothing || touch.group >= self.plan.groups {
            return;
        }
        // The touched group itself is not marked as taken: its reader may give up.
        let foreseen = self.taken.get(touch.group);
        if self.plan.known == Known::Recorded && foreseen {
            return;
        }
        let (taken, touched) = (&self.taken, &self.touched);
        let known = |near| taken.get(near) || touched.get(near);
        self.neighbours.touched(touch, foreseen, self.plan.groups, known);
    }

    /// Records a group prefetched for this snapshot.
    pub(super) fn fetched(&mut self, number: u32, stored_len: u32) {
        if self.touched.get(number) {
            self.stats.used_bytes = self.stats.used_bytes.saturating_add(u64::from(stored_len));
        } else {
            self.unused.set(number);
        }
        self.failures = 0;
        self.stats.fetched = self.stats.fetched.saturating_add(1);
        self.stats.fetched_bytes = self.stats.fetched_bytes.saturating_add(u64::from(stored_len));
    }

    /// Records the failed groups of one request. They are retried once, after a pause.
    pub(super) fn failed(
        &mut self,
        now: Moment,
        groups: impl IntoIterator<Item = Ready>,
        waiting: &mut Waiting,
    ) {
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(16)).min(PAUSE_LAST);
        self.failures = self.failures.saturating_add(1);
        self.rest(now, pause);
        for mut ready in groups {
            ready.tries = ready.tries.saturating_add(1);
            if ready.tries < TRIES {
                self.ready.push_back(ready);
                waiting.add(ready.want.key(), self.id);
            } else {
                self.stats.given_up = self.stats.given_up.saturating_add(1);
            }
        }
        self.sort();
    }

    /// Pauses because the cache rejected a group.
    pub(super) fn no_room(&mut self, now: Moment) {
        self.rest(now, PAUSE_FULL);
    }

    fn rest(&mut self, now: Moment, pause: Duration) {
        let until = now.after(pause);
        self.rests_until = Some(self.rests_until.map_or(until, |earlier| earlier.max(until)));
    }

    /// Returns the classes of the queued groups, one item per group.
    pub(super) fn queued(&self) -> impl Iterator<Item = (Class, usize)> {
        self.ready.iter().map(|ready| (ready.class, 1))
    }

    pub(super) fn stats(&self, now: Moment) -> WorkProgress {
        let phase = match self.class() {
            _ if self.preparing.is_some_and(|until| now < until) => Phase::Preparing,
            None => Phase::Done,
            Some(_) if !self.is_awake(now) => Phase::Resting,
            Some(Class::Rest) => Phase::Rest,
            Some(_) => Phase::First,
        };
        WorkProgress { ready: small(self.ready.len()), phase, ..self.stats }
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// One bit per group.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    len: u32,
}

impl Bits {
    fn resize(&mut self, len: u32) {
        self.len = len;
        self.words.resize(len.div_ceil(64) as usize, 0);
    }

    /// Sets a bit. Returns true if it was clear; false if it was set or out of range.
    fn set(&mut self, place: u32) -> bool {
        if place >= self.len {
            return false;
        }
        let Some(word) = self.words.get_mut(place as usize / 64) else { return false };
        let bit = 1 << (place % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Clears a bit. Returns whether it was set.
    fn clear(&mut self, place: u32) -> bool {
        let Some(word) = self.words.get_mut(place as usize / 64) else { return false };
        let bit = 1 << (place % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    /// Returns whether a bit is set or out of range.
    fn get(&self, place: u32) -> bool {
        let word = self.words.get(place as usize / 64).filter(|_| place < self.len);
        word.is_none_or(|word| word & (1 << (place % 64)) != 0)
    }
}
