//! Indexes snapshots with work left: whose turn it is, and when that changes.
//!
//! A snapshot is refiled after each of its events, in time logarithmic in the number of snapshots.
//! So the cost of an event depends on its own work, not on everything that is being loaded.

use std::collections::{BTreeSet, HashMap};

use super::types::{Moment, WorkId};
use crate::want::{Class, Key};

/// Scheduling state of one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Class of the next group.
    pub(super) class: Class,
    /// Stored bytes requested.
    pub(super) served: u64,
    pub(super) state: State,
    /// When the standing may change even if no event arrives.
    pub(super) wakes: Option<Moment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not taking part; blocks no other snapshot.
    Asleep,
    /// Waiting for the driver; blocks lower classes.
    Waits,
    /// A request or probe can start.
    Acts,
}

/// All standings, indexed for the scheduler's queries.
#[derive(Debug, Default)]
pub(super) struct Standings {
    filed: HashMap<WorkId, Standing>,
    /// Snapshots that can have a turn, in order.
    turns: BTreeSet<(Class, u64, WorkId)>,
    /// Number of snapshots awake, by class.
    awake: [usize; Class::ALL.len()],
    shares: BTreeSet<(u64, WorkId)>,
    timers: BTreeSet<(Moment, WorkId)>,
}

impl Standings {
    /// Refiles a snapshot; `None` removes it.
    pub(super) fn file(&mut self, id: WorkId, standing: Option<Standing>) {
        let before = match standing {
            Some(standing) => self.filed.insert(id, standing),
            None => self.filed.remove(&id),
        };
        if before == standing {
            return;
        }
        if let Some(before) = before {
            self.turns.remove(&turn(id, &before));
            self.shares.remove(&(before.served, id));
            before.wakes.map(|at| self.timers.remove(&(at, id)));
            self.count(&before, |count| count.saturating_sub(1));
        }
        if let Some(standing) = standing {
            if takes_turns(&standing) {
                self.turns.insert(turn(id, &standing));
            }
            self.shares.insert((standing.served, id));
            standing.wakes.map(|at| self.timers.insert((at, id)));
            self.count(&standing, |count| count + 1);
        }
    }

    fn count(&mut self, standing: &Standing, change: impl Fn(usize) -> usize) {
        if standing.state != State::Asleep
            && let Some(count) = self.awake.get_mut(standing.class.place())
        {
            *count = change(*count);
        }
    }

    pub(super) fn get(&self, id: WorkId) -> Option<&Standing> {
        self.filed.get(&id)
    }

    /// Returns the most urgent class with a snapshot awake.
    pub(super) fn class(&self) -> Option<Class> {
        let mut classes = Class::ALL.into_iter().zip(self.awake);
        classes.find(|(_, awake)| *awake > 0).map(|(class, _)| class)
    }

    /// Returns whose turn it is in a class: the newest directory, otherwise the snapshot with the
    /// fewest bytes served.
    pub(super) fn turn(&self, class: Class) -> Option<WorkId> {
        let from = (class, 0, WorkId(0));
        let first = self.turns.range(from..).next().filter(|(of, ..)| *of == class);
        first.map(|(.., id)| *id)
    }

    /// Returns the smallest `served` of all snapshots.
    pub(super) fn least_served(&self) -> Option<u64> {
        self.shares.first().map(|(served, _)| *served)
    }

    /// Returns the earliest time at which a standing may change.
    pub(super) fn wakes_at(&self) -> Option<Moment> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Returns one snapshot whose wake time has passed.
    pub(super) fn due(&self, now: Moment) -> Option<WorkId> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = WorkId> {
        self.filed.keys().copied()
    }
}

/// A directory keeps its turn even while it waits: older ones wait for it, too.
fn takes_turns(standing: &Standing) -> bool {
    match standing.state {
        State::Asleep => false,
        State::Waits => standing.class == Class::Directory,
        State::Acts => true,
    }
}

fn turn(id: WorkId, standing: &Standing) -> (Class, u64, WorkId) {
    let rank = match standing.class {
        Class::Directory => u64::MAX - id.0,
        _ => standing.served,
    };
    (standing.class, rank, id)
}

/// Indexes which snapshots have a group in their queues.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_key: HashMap<Key, Holders>,
}

/// Nearly always one snapshot.
#[derive(Debug)]
enum Holders {
    One(WorkId),
    Many(BTreeSet<WorkId>),
}

impl Waiting {
    pub(super) fn add(&mut self, key: Key, id: WorkId) {
        match self.by_key.get_mut(&key) {
            None => {
                self.by_key.insert(key, Holders::One(id));
            }
            Some(Holders::Many(ids)) => {
                ids.insert(id);
            }
            Some(Holders::One(one)) if *one == id => {}
            Some(holders) => {
                let Holders::One(one) = *holders else { return };
                *holders = Holders::Many(BTreeSet::from([one, id]));
            }
        }
    }

    pub(super) fn remove(&mut self, key: &Key, id: WorkId) {
        let gone = match self.by_key.get_mut(key) {
            None => false,
            Some(Holders::One(one)) => *one == id,
            Some(Holders::Many(ids)) => {
                ids.remove(&id);
                ids.is_empty()
            }
        };
        if gone {
            self.by_key.remove(key);
        }
    }

    /// Removes a group and returns all snapshots that had it queued, oldest first.
    pub(super) fn take(&mut self, key: &Key) -> Vec<WorkId> {
        match self.by_key.remove(key) {
            None => Vec::new(),
            Some(Holders::One(id)) => vec![id],
            Some(Holders::Many(ids)) => ids.into_iter().collect(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn acts(class: Class, served: u64) -> Standing {
        Standing { class, served, state: State::Acts, wakes: None }
    }

    #[test]
    fn turns_go_by_class_then_by_age_of_directories_or_by_share() {
        let mut standings = Standings::default();
        for (id, class, served) in [
            (1, Class::Rest, 5),
            (2, Class::Rest, 4),
            (3, Class::Directory, 9),
            (4, Class::Directory, 99),
        ] {
            standings.file(WorkId(id), Some(acts(class, served)));
        }
        assert_eq!(standings.class(), Some(Class::Directory));
        assert_eq!(standings.turn(Class::Directory), Some(WorkId(4)));
        assert_eq!(standings.turn(Class::Profile), None);
        assert_eq!(standings.turn(Class::Rest), Some(WorkId(2)));
        assert_eq!(standings.least_served(), Some(4));
        for id in [2, 3, 4] {
            standings.file(WorkId(id), None);
        }
        assert_eq!((standings.class(), standings.least_served()), (Some(Class::Rest), Some(5)));
        standings.file(WorkId(1), None);
        assert_eq!((standings.class(), standings.least_served()), (None, None));
        assert_eq!(standings.turn(Class::Rest), None);
    }

    #[test]
    fn one_that_waits_stands_in_the_way_and_one_that_sleeps_does_not() {
        let mut standings = Standings::default();
        let with = |class, state| Some(Standing { class, served: 0, state, wakes: None });
        standings.file(WorkId(1), Some(acts(Class::Rest, 0)));
        standings.file(WorkId(2), with(Class::Profile, State::Waits));
        assert_eq!(
            (standings.class(), standings.turn(Class::Profile)),
            (Some(Class::Profile), None)
        );
        standings.file(WorkId(2), with(Class::Profile, State::Asleep));
        assert_eq!(standings.class(), Some(Class::Rest));
        standings.file(WorkId(3), with(Class::Directory, State::Waits));
        assert_eq!(standings.turn(Class::Directory), Some(WorkId(3)));
        standings.file(WorkId(3), with(Class::Directory, State::Asleep));
        assert_eq!(standings.turn(Class::Directory), None);
    }

    #[test]
    fn timers_come_in_order_and_are_replaced() {
        let mut standings = Standings::default();
        let until = |millis| {
            let (class, state) = (Class::Rest, State::Asleep);
            Some(Standing { class, served: 0, state, wakes: Some(at(millis)) })
        };
        standings.file(WorkId(1), until(20));
        standings.file(WorkId(2), until(10));
        assert_eq!((standings.wakes_at(), standings.due(at(9))), (Some(at(10)), None));
        assert_eq!(standings.due(at(10)), Some(WorkId(2)));
        standings.file(WorkId(2), until(30));
        assert_eq!((standings.wakes_at(), standings.due(at(19))), (Some(at(20)), None));
    }

    #[test]
    fn all_that_have_a_group_are_found() {
        let key = |number: u8| {
            use inlay_store::format::{BlobIdx, Group};
            use inlay_store::ids::{BlobId, Digest, GroupDigest};
            let digest = Digest::from_bytes([number; 32]);
            let group = Group {
                digest: GroupDigest(digest),
                blob: BlobIdx(0),
                ordinal: 0,
                offset: 0,
                stored_len: 1,
                raw_len: 1,
                owner: None,
            };
            crate::want::GroupRef { blob: BlobId(digest), group, home: None }.key()
        };
        let mut waiting = Waiting::default();
        for id in [3, 1, 3, 2] {
            waiting.add(key(7), WorkId(id));
        }
        waiting.add(key(8), WorkId(1));
        waiting.remove(&key(7), WorkId(1));
        waiting.remove(&key(8), WorkId(9));
        assert_eq!(waiting.take(&key(7)), [WorkId(2), WorkId(3)]);
        assert_eq!(waiting.take(&key(7)), []);
        waiting.remove(&key(8), WorkId(1));
        assert!(waiting.is_empty());
    }
}
