//! Simulates readers: each follows its script and waits for groups that are not cached.

use std::time::Duration;

use inlay_prefetch::scheduler::{Ticket, Touched};

use crate::link::Nanos;
use crate::reference::{Gid, Held};
use crate::scenario::{Begins, Patience, Told};
use crate::world::moment;
use crate::world::{Event, World, nanos};

/// Answer to a reader's demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    None,
    Bytes,
    Error,
}

#[derive(Debug)]
struct WantedGroup {
    gid: Gid,
    ticket: Ticket,
    answer: Answer,
}

/// Progress of a reader.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    touch: usize,
    /// Pending demands, in order.
    wants: Vec<WantedGroup>,
    since: Nanos,
    begun: bool,
    pub(crate) done: bool,
}

impl Reading {
    pub(crate) fn is_stuck(&self) -> bool {
        !self.done && self.begun
    }
}

impl World {
    /// Returns the groups of a reader's current touch.
    fn touch_gids(&self, reader: usize) -> Vec<Gid> {
        let script = &self.scenario.readers[reader];
        let groups = &self.books.works[script.snapshot].groups;
        let touch = &script.touches[self.readers[reader].touch];
        touch.groups.iter().map(|number| groups[*number as usize]).collect()
    }

    /// Returns whether a read finds a group on this host.
    fn is_here(&self, gid: Gid) -> bool {
        self.books.of(gid).held != Held::Nowhere
    }

    /// Starts a reader's next read.
    pub(crate) fn wake(&mut self, reader: usize) {
        self.readers[reader].begun = true;
        self.readers[reader].since = self.now;
        if self.touch_gids(reader).iter().all(|gid| self.is_here(*gid)) {
            self.report(reader);
            self.answered_touch(reader);
            return;
        }
        // A task picks it up.
        let delay = self.draw(15_000);
        self.after(delay, Event::Read(reader));
        if let Patience::Some(part, most) = self.scenario.readers[reader].patience
            && self.rng.f64() < part
        {
            let after = self.rng.u64(1..nanos(most));
            self.after(after, Event::GiveUp(reader, self.readers[reader].touch));
        }
    }

    /// Reports first touches and read-ahead hints to the scheduler.
    fn report(&mut self, reader: usize) {
        let snapshot = self.scenario.readers[reader].snapshot;
        let touch = self.scenario.readers[reader].touches[self.readers[reader].touch].clone();
        for number in touch.groups {
            let work = &mut self.books.works[snapshot];
            let now = self.now;
            if work.told == Told::Yes
                && work.touch(now, number)
                && let Some(id) = work.id
            {
                let gid = work.groups[number as usize];
                let stored_len = self.books.of(gid).want.group.stored_len;
                let file = self.scenario.snapshots[snapshot].snapshot.file_of(number);
                let touch = Touched { group: number, stored_len, file };
                self.scheduler.touched(moment(self.now), id, &touch);
                self.pump();
            }
        }
        let mut hinted = false;
        for number in touch.hints {
            let gid = self.books.works[snapshot].groups[number as usize];
            let group = self.books.of(gid);
            if matches!(group.held, Held::Cached | Held::Memory) {
                continue;
            }
            hinted = true;
            let want = group.want;
            let known = self.scheduler.has(&want.key());
            if self.scheduler.hint(&want) && !known {
                self.books.hint(gid);
            }
        }
        if hinted {
            self.pump();
        }
    }

    /// Demands the missing groups of a read.
    pub(crate) fn read(&mut self, reader: usize) {
        let missing: Vec<Gid> =
            self.touch_gids(reader).into_iter().filter(|gid| !self.is_here(*gid)).collect();
        self.report(reader);
        // Groups cached since then are found when the request starts.
        let mut wants: Vec<WantedGroup> = Vec::new();
        for gid in missing {
            let group = self.books.of(gid);
            let twice = wants.iter().any(|want| want.gid == gid);
            if matches!(group.held, Held::Landed | Held::Memory) || twice {
                continue;
            }
            let want = group.want;
            let (_, ticket) = self.scheduler.demand(&want);
            self.books.wait(gid, reader);
            wants.push(WantedGroup { gid, ticket, answer: Answer::None });
        }
        self.books.log(self.now, "reader waits", reader as u64, wants.len() as u64);
        let nothing = wants.is_empty();
        self.readers[reader].wants = wants;
        self.pump();
        if nothing {
            self.answered_touch(reader);
        }
    }

    /// Answers all readers of a group; they notice slightly later.
    pub(crate) fn answer(&mut self, gid: Gid, answer: Answer) {
        for reader in self.books.answer(gid) {
            let wants = self.readers[reader].wants.iter_mut();
            for want in wants.filter(|want| want.gid == gid) {
                want.answer = answer;
            }
            let delay = self.draw(10_000);
            self.after(delay, Event::Poll(reader));
        }
    }

    /// Consumes a reader's answers, in the order of its demands.
    pub(crate) fn poll(&mut self, reader: usize) {
        if self.readers[reader].wants.is_empty() {
            return;
        }
        while let Some(want) = self.readers[reader].wants.first() {
            match want.answer {
                Answer::None => return,
                Answer::Bytes => {
                    let want = self.readers[reader].wants.remove(0);
                    self.scheduler.leave(&want.ticket);
                    self.pump();
                }
                Answer::Error => {
                    self.leave_all(reader);
                    break;
                }
            }
        }
        self.answered_touch(reader);
    }

    fn leave_all(&mut self, reader: usize) {
        for want in std::mem::take(&mut self.readers[reader].wants) {
            self.books.stop_waiting(want.gid, reader);
            self.scheduler.leave(&want.ticket);
            self.pump();
        }
    }

    pub(crate) fn give_up(&mut self, reader: usize, touch: usize) {
        if self.readers[reader].touch == touch && !self.readers[reader].wants.is_empty() {
            self.books.log(self.now, "reader gives up", reader as u64, touch as u64);
            self.leave_all(reader);
            self.answered_touch(reader);
        }
    }

    /// Ends a reader's touch, with bytes or an error, and schedules the next.
    fn answered_touch(&mut self, reader: usize) {
        let waited = Duration::from_nanos(self.now - self.readers[reader].since);
        if !waited.is_zero() {
            self.outcome.waits[reader].push(waited);
        }
        self.readers[reader].touch += 1;
        let next = self.scenario.readers[reader].touches.get(self.readers[reader].touch);
        if let Some(touch) = next {
            let think = nanos(touch.think);
            self.after(think, Event::Wake(reader));
        } else {
            self.readers[reader].done = true;
            self.outcome.done[reader] = Duration::from_nanos(self.now);
        }
    }

    /// Starts readers that wait for their whole snapshot, if it is cached.
    pub(crate) fn wake_patient(&mut self) {
        for reader in 0..self.readers.len() {
            let script = &self.scenario.readers[reader];
            if self.readers[reader].begun || !matches!(script.begins, Begins::WhenWhole) {
                continue;
            }
            let groups = &self.books.works[script.snapshot].groups;
            if groups.iter().all(|gid| self.is_here(*gid)) {
                self.readers[reader].begun = true;
                let think = script.touches.first().map_or(0, |touch| nanos(touch.think));
                self.after(think, Event::Wake(reader));
            }
        }
    }
}
