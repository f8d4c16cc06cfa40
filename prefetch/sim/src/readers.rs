//! Readers of the simulation: each follows its script, and waits for what is not cached.

use std::time::Duration;

use inlay_prefetch::scheduler::{Ticket, Touched};

use crate::books::{Gid, Held};
use crate::link::Nanos;
use crate::scenario::{Begins, Patience, Told};
use crate::world::moment;
use crate::world::{Event, World, nanos};

/// What a reader's want has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    None,
    Bytes,
    Error,
}

#[derive(Debug)]
struct Wanted {
    gid: Gid,
    ticket: Ticket,
    answer: Answer,
}

/// How far a reader is.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    touch: usize,
    /// What it waits for, in order.
    wants: Vec<Wanted>,
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
    /// The groups of the touch that a reader is at.
    fn touch_gids(&self, reader: usize) -> Vec<Gid> {
        let script = &self.scenario.readers[reader];
        let groups = &self.books.works[script.snapshot].groups;
        let touch = &script.touches[self.readers[reader].touch];
        touch.groups.iter().map(|number| groups[*number as usize]).collect()
    }

    /// Whether a read finds a group on this host.
    fn is_here(&self, gid: Gid) -> bool {
        self.books.of(gid).held != Held::Nowhere
    }

    /// A reader has thought, and reads.
    pub(crate) fn wake(&mut self, reader: usize) {
        self.readers[reader].begun = true;
        self.readers[reader].since = self.now;
        if self.touch_gids(reader).iter().all(|gid| self.is_here(*gid)) {
            self.tell(reader);
            self.answered_touch(reader);
            return;
        }
        // A task takes it up.
        let delay = self.draw(15_000);
        self.after(delay, Event::Read(reader));
        if let Patience::Some(part, most) = self.scenario.readers[reader].patience
            && self.rng.f64() < part
        {
            let after = self.rng.u64(1..nanos(most));
            self.after(after, Event::GiveUp(reader, self.readers[reader].touch));
        }
    }

    /// The scheduler hears of first touches and of what will probably be read.
    fn tell(&mut self, reader: usize) {
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

    /// What is missing is demanded.
    pub(crate) fn read(&mut self, reader: usize) {
        let missing: Vec<Gid> =
            self.touch_gids(reader).into_iter().filter(|gid| !self.is_here(*gid)).collect();
        self.tell(reader);
        // What came since is found when the request begins.
        let mut wants: Vec<Wanted> = Vec::new();
        for gid in missing {
            let group = self.books.of(gid);
            let twice = wants.iter().any(|want| want.gid == gid);
            if matches!(group.held, Held::Landed | Held::Memory) || twice {
                continue;
            }
            let want = group.want;
            let (_, ticket) = self.scheduler.demand(&want);
            self.books.wait(gid, reader);
            wants.push(Wanted { gid, ticket, answer: Answer::None });
        }
        self.books.log(self.now, "reader waits", reader as u64, wants.len() as u64);
        let nothing = wants.is_empty();
        self.readers[reader].wants = wants;
        self.pump();
        if nothing {
            self.answered_touch(reader);
        }
    }

    /// All readers of a group have an answer, of which they learn a little later.
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

    /// A reader looks at what has come, in the order in which it asked.
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

    /// A reader has what it wanted, or an error, and goes on.
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

    /// Readers that begin when all of their snapshot is here, if it is.
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
