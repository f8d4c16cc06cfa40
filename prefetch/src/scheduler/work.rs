//! What is to be loaded for one snapshot, and how far that is.
//!
//! A group that waits costs one bit, and four bytes more if it was named to come first. Only the next
//! few are known by what they are: the driver looks them up, and leaves out what this host has.

use std::collections::VecDeque;
use std::time::Duration;

use super::Moment;
use super::neighbours::Neighbours;
use super::span::Span;
use super::types::{Extent, Known, Looked, Phase, Plan, Room, Touched, Urgency, Why, WorkFigures};
use crate::want::{Class, GroupRef, Key};

/// How many groups are looked up at a time, and how few are left when the next are.
const LOOK: usize = 64;
const LOOK_BELOW: usize = 24;
/// So many groups that were looked up may wait: above that, the oldest neighbours are forgotten until the
/// rest comes. What is planned to come first is not.
const READY_MAX: usize = 192;
/// An image's rest waits until nothing new was read for so long: a start has the link and the host's
/// cores for itself,
const CALM: Duration = Duration::from_secs(1);
/// but for no longer than this.
const CALM_MAX: Duration = Duration::from_secs(30);
/// How many reads are remembered until the plan is there.
const EARLY_MAX: usize = 256;
/// How often one group is tried without a reader.
const TRIES: u8 = 2;
/// The pause after a failure doubles from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_LAST: Duration = Duration::from_secs(30);
/// The pause when the cache has no room.
const PAUSE_FULL: Duration = Duration::from_secs(5);
/// How long what is less urgent waits for a snapshot's plan.
const PREPARE: Duration = Duration::from_secs(2);

/// A group that was looked up and is missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) number: u32,
    pub(super) want: GroupRef,
    pub(super) class: Class,
    pub(super) why: Why,
    tries: u8,
    /// Which look has found it.
    look: u32,
}

/// Groups that the driver is looking up.
#[derive(Debug)]
struct Looking {
    asked: Vec<(u32, Class, Why)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) urgency: Urgency,
    /// Stored bytes that were asked for, for fairness between snapshots of a class.
    pub(super) served: u64,
    plan: Plan,
    /// Until when its plan is waited for; `None` once it is there.
    preparing: Option<Moment>,
    taken: Bits,
    /// Those that were fetched ahead and that no reader has touched yet.
    unused: Bits,
    touched: Bits,
    /// The next of `plan.first`, and the next in the order of the tree.
    first_next: u32,
    rest_next: u32,
    neighbours: Neighbours,
    /// What was read before the plan was there.
    early: Vec<Touched>,
    /// When the rest may be loaded, and when it is whatever happens.
    calm_at: Moment,
    calm_at_last: Moment,
    /// Groups that were on their way for somebody else and did not come: looked at again last.
    again: VecDeque<u32>,
    ready: VecDeque<Ready>,
    looking: Option<Looking>,
    looks: u32,
    /// What was asked when the cache had no room: asked again first.
    unanswered: Vec<(u32, Class, Why)>,
    rests_until: Option<Moment>,
    failures: u32,
    figures: WorkFigures,
}

impl Work {
    pub(super) fn new(urgency: Urgency, now: Moment, served: u64) -> Self {
        Self {
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
            figures: WorkFigures::default(),
        }
    }

    /// Sets, or replaces, the order. What is just being looked at keeps its place in the old one.
    pub(super) fn set(&mut self, plan: Plan) {
        self.figures.looked = self.figures.looked.saturating_sub(small(self.ready.len()));
        let queued = self.ready.drain(..).map(|ready| ready.number);
        let asked = self.unanswered.drain(..).map(|(number, ..)| number);
        // What was put off may be named to come first now.
        for number in queued.chain(asked).chain(self.again.drain(..)) {
            self.taken.clear(number);
        }
        (self.first_next, self.rest_next) = (0, 0);
        self.preparing = None;
        self.taken.resize(plan.groups);
        self.unused.resize(plan.groups);
        self.touched.resize(plan.groups);
        self.figures.groups = plan.groups;
        self.figures.first = u32::try_from(plan.first.len()).unwrap_or(u32::MAX);
        self.plan = plan;
        for touch in std::mem::take(&mut self.early) {
            self.place(&touch);
        }
    }

    /// For whom the next group is loaded, if one is left.
    pub(super) fn class(&self) -> Option<Class> {
        let next = self.ready.iter().map(|ready| ready.class).min();
        let looked =
            self.looking.as_ref().and_then(|l| l.asked.first().map(|(_, class, _)| *class));
        // What was not looked up yet may be more urgent than what was.
        match next.into_iter().chain(looked).chain(self.peek()).min() {
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

    /// The class of the next group that was not looked up yet.
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

    /// Whether it takes part now. One that does not stands in nobody's way.
    pub(super) fn is_awake(&self, now: Moment) -> bool {
        let prepared = self.preparing.is_none_or(|until| now < until);
        let calm = self.is_calm(now) || self.class() != Some(Class::Rest);
        prepared && calm && self.rests_until.is_none_or(|until| now >= until)
    }

    fn is_calm(&self, now: Moment) -> bool {
        now >= self.calm_at.min(self.calm_at_last)
    }

    /// When it wakes up, if it rests.
    pub(super) fn wakes_at(&self, now: Moment) -> Option<Moment> {
        let calm = self.calm_at.min(self.calm_at_last);
        let moments = [self.rests_until, self.preparing, Some(calm)];
        moments.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Passes over what was taken already, so that what comes next is certain to be something.
    pub(super) fn skip_taken(&mut self) {
        self.neighbours.skip(|number| self.taken.get(number));
        let first = self.plan.first.get(self.first_next as usize..).unwrap_or_default();
        let taken = first.iter().take_while(|number| self.taken.get(**number)).count();
        self.first_next = self.first_next.saturating_add(small(taken));
        while self.rest_next < self.plan.groups && self.taken.get(self.rest_next) {
            self.rest_next += 1;
        }
    }

    /// Whether the driver should look up more groups.
    pub(super) fn wants_look(&self, now: Moment) -> bool {
        let Some(class) = self.peek().filter(|_| self.looking.is_none()) else { return false };
        let few = self.ready.len() < LOOK_BELOW;
        let urgent = self.ready.front().is_some_and(|ready| ready.class > class);
        // What lies beside the last read is more likely than what was looked up before.
        (few || urgent || self.neighbours.are_fresh())
            && (class != Class::Rest || self.is_calm(now))
    }

    /// The groups to look up now, all of one class.
    pub(super) fn look(&mut self) -> Option<(Vec<u32>, Class)> {
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

    /// The driver has looked. What it left out is here, but for `flying` groups, which are on their way.
    pub(super) fn looked(&mut self, now: Moment, looked: Looked, flying: usize) {
        let Some(Looking { asked }) = self.looking.take() else { return };
        if looked.room == Room::None {
            self.rest(now, PAUSE_FULL);
            self.unanswered = asked;
            return;
        }
        let (all, missing) = (asked.len(), looked.missing.len().min(asked.len()));
        self.figures.looked = self.figures.looked.saturating_add(small(all));
        let here = all.saturating_sub(missing + flying);
        self.figures.here = self.figures.here.saturating_add(small(here));
        let mut asked = asked.into_iter();
        for (number, want) in looked.missing {
            // An answer is in the order of the question; what was not asked for is no answer.
            let Some((_, class, why)) = asked.find(|(one, ..)| *one == number) else { break };
            self.ready.push_back(Ready { number, want, class, why, tries: 0, look: self.looks });
        }
        self.sort();
        self.forget_neighbours();
    }

    /// Leaves the oldest neighbours to the rest, if there are too many.
    fn forget_neighbours(&mut self) {
        while self.ready.len() > READY_MAX {
            let first = &self.plan.first;
            let oldest = self
                .ready
                .iter()
                .rposition(|ready| ready.why == Why::Beside && !first.contains(&ready.number));
            let Some(oldest) = oldest.and_then(|place| self.ready.remove(place)) else { return };
            self.later(oldest.number);
        }
    }

    /// What lies beside a read, or has failed once, may have come after what is less likely. Neighbours
    /// of the last read come first.
    fn sort(&mut self) {
        self.ready.make_contiguous().sort_by_key(|ready| {
            let beside = ready.why == Why::Beside;
            (ready.class, !beside, if beside { u32::MAX - ready.look } else { 0 })
        });
    }

    /// Whether it must be waited for before anything less urgent is done.
    pub(super) fn is_looking(&self) -> bool {
        self.looking.is_some() || self.preparing.is_some()
    }

    /// The group whose turn it is.
    pub(super) fn first(&self) -> Option<Ready> {
        self.ready.front().copied()
    }

    /// It is being fetched.
    pub(super) fn take_first(&mut self) {
        self.ready.pop_front();
    }

    /// Takes out what belongs into one request with `first`, until nothing more fits.
    pub(super) fn take_beside(&mut self, first: &Ready, span: &mut Span, taken: &mut Vec<Ready>) {
        let mut before = 0;
        while taken.len() > before {
            before = taken.len();
            self.ready.retain(|ready| {
                let takes = ready.class == first.class
                    && ready.tries == first.tries
                    && span.add(&ready.want);
                if takes {
                    taken.push(*ready);
                }
                !takes
            });
        }
    }

    /// Takes out the group with this key.
    pub(super) fn take(&mut self, key: &Key) -> Option<Ready> {
        let place = self.ready.iter().position(|ready| ready.want.key() == *key)?;
        self.ready.remove(place)
    }

    /// A group's turn comes again last: it was on its way for somebody else and did not come, or others
    /// are more likely.
    pub(super) fn later(&mut self, number: u32) {
        self.figures.looked = self.figures.looked.saturating_sub(1);
        self.again.push_back(number);
    }

    /// A group of it was read for the first time. What lies beside it will probably be, too.
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
            self.figures.used_bytes = self.figures.used_bytes.saturating_add(stored_len);
        }
        if again || self.plan.extent == Extent::Nothing || touch.group >= self.plan.groups {
            return;
        }
        // It is not taken thereby: its reader may give up.
        let foreseen = self.taken.get(touch.group);
        if self.plan.known == Known::Recorded && foreseen {
            return;
        }
        let (taken, touched) = (&self.taken, &self.touched);
        let known = |near| taken.get(near) || touched.get(near);
        self.neighbours.touched(touch, foreseen, self.plan.groups, known);
    }

    /// A group that was asked for ahead has come.
    pub(super) fn fetched(&mut self, number: u32, stored_len: u32) {
        if self.touched.get(number) {
            self.figures.used_bytes = self.figures.used_bytes.saturating_add(u64::from(stored_len));
        } else {
            self.unused.set(number);
        }
        self.failures = 0;
        self.figures.fetched = self.figures.fetched.saturating_add(1);
        self.figures.fetched_bytes =
            self.figures.fetched_bytes.saturating_add(u64::from(stored_len));
    }

    /// Groups of one request have not come. They are tried once more, after a pause.
    pub(super) fn failed(&mut self, now: Moment, groups: impl IntoIterator<Item = Ready>) {
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(16)).min(PAUSE_LAST);
        self.failures = self.failures.saturating_add(1);
        self.rest(now, pause);
        for mut ready in groups {
            ready.tries = ready.tries.saturating_add(1);
            if ready.tries < TRIES {
                self.ready.push_back(ready);
            } else {
                self.figures.given_up = self.figures.given_up.saturating_add(1);
            }
        }
        self.sort();
    }

    /// The cache did not take what came.
    pub(super) fn no_room(&mut self, now: Moment) {
        self.rest(now, PAUSE_FULL);
    }

    fn rest(&mut self, now: Moment, pause: Duration) {
        let until = now.after(pause);
        self.rests_until = Some(self.rests_until.map_or(until, |earlier| earlier.max(until)));
    }

    /// How many groups wait for their turn, by class.
    pub(super) fn queued(&self) -> impl Iterator<Item = (Class, usize)> {
        self.ready.iter().map(|ready| (ready.class, 1))
    }

    pub(super) fn figures(&self, now: Moment) -> WorkFigures {
        let phase = match self.class() {
            _ if self.preparing.is_some_and(|until| now < until) => Phase::Preparing,
            None => Phase::Done,
            Some(_) if !self.is_awake(now) => Phase::Resting,
            Some(Class::Rest) => Phase::Rest,
            Some(_) => Phase::First,
        };
        WorkFigures { ready: small(self.ready.len()), phase, ..self.figures }
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A bit for each group.
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

    /// Sets a bit. Whether it was not set; false for one that there is not.
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

    /// Clears a bit. Whether it was set.
    fn clear(&mut self, place: u32) -> bool {
        let Some(word) = self.words.get_mut(place as usize / 64) else { return false };
        let bit = 1 << (place % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    /// Whether a bit is set, or there is none.
    fn get(&self, place: u32) -> bool {
        let word = self.words.get(place as usize / 64).filter(|_| place < self.len);
        word.is_none_or(|word| word & (1 << (place % 64)) != 0)
    }
}
