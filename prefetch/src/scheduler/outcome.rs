//! What becomes of requests and groups: they come, fail, are wrong, and find their place.

use std::collections::HashMap;
use std::time::Duration;

use super::flights::{Company, Place};
use super::state::{Failed, Scheduler, pool};
use super::types::{Moment, RequestId, Settled, WorkId};
use super::work::Ready;
use crate::want::{Class, Key};

impl Scheduler {
    /// The answer of a request begins to come, `after` it was made.
    pub fn answered(&mut self, now: Moment, after: Duration) {
        self.link.answered(now, after);
    }

    /// So many bytes of a request have come.
    pub fn arrived(&mut self, now: Moment, id: RequestId, bytes: u64) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let counted = bytes.min(request.left);
        request.left -= counted;
        let ahead = request.class != Class::Demand;
        self.account(counted, ahead);
        self.link.arrived(now, bytes, self.under_way > 0);
    }

    fn account(&mut self, bytes: u64, ahead: bool) {
        self.under_way = self.under_way.saturating_sub(bytes);
        if ahead {
            self.ahead = self.ahead.saturating_sub(bytes);
        }
    }

    /// A request has ended well. Its groups are still to be settled, one by one.
    pub fn ended(&mut self, now: Moment, id: RequestId) {
        self.end(id);
        if self.under_way == 0 {
            self.link.arrived(now, 0, false);
        }
    }

    fn end(&mut self, id: RequestId) -> Option<(Class, Vec<Key>)> {
        let request = self.requests.remove(&id)?;
        self.account(request.left, request.class != Class::Demand);
        if let Some(pool) = self.pools.get_mut(pool(request.class)) {
            pool.request_ended();
        }
        Some((request.class, request.keys))
    }

    /// A request has failed. What is done about each of its groups that is not settled yet.
    pub fn failed(&mut self, now: Moment, id: RequestId, why: Failed) -> Vec<(Key, Settled)> {
        let Some((class, keys)) = self.end(id) else { return Vec::new() };
        let several = keys.len() > 1;
        let mut gone: HashMap<WorkId, Vec<Ready>> = HashMap::new();
        let mut settled = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(flight) = self.flights.get_mut(&key) else { continue };
            if flight.place != Place::Running(id) {
                continue;
            }
            let again = flight.waiters > 0
                && !self.closed
                && match why {
                    Failed::Cancelled => true,
                    Failed::Store => {
                        flight.company == Company::Any && (several || class != Class::Demand)
                    }
                };
            let what = if again {
                flight.company = Company::Alone;
                self.demand_again(&key);
                Settled::Again
            } else if flight.waiters > 0 {
                if let Some((work, ready)) = self.gone(&key) {
                    gone.entry(work).or_default().push(ready);
                }
                Settled::Failed
            } else if why == Failed::Store {
                if let Some((work, ready)) = self.gone(&key) {
                    gone.entry(work).or_default().push(ready);
                }
                Settled::Dropped
            } else {
                self.drop_flight(&key);
                Settled::Dropped
            };
            settled.push((key, what));
        }
        for (work, groups) in gone {
            self.work_failed(now, work, groups);
        }
        settled
    }

    fn demand_again(&mut self, key: &Key) {
        if let Some(flight) = self.flights.get_mut(key) {
            flight.class = Class::Demand;
            flight.place = Place::Queued;
            self.demand.push_front(*key);
        }
    }

    /// A group came with wrong bytes, the so-manieth time. It is fetched again for its readers, as
    /// often as the limits allow.
    pub fn corrupt(&mut self, now: Moment, key: &Key) -> (Settled, u32) {
        let Some(flight) = self.flights.get_mut(key) else { return (Settled::Dropped, 0) };
        flight.corrupt = flight.corrupt.saturating_add(1);
        let times = flight.corrupt;
        let waited_for = flight.waiters > 0;
        if waited_for && times <= self.limits.corrupt_retries && !self.closed {
            flight.company = Company::Alone;
            self.demand_again(key);
            return (Settled::Again, times);
        }
        if let Some((id, ready)) = self.gone(key) {
            self.work_failed(now, id, [ready]);
        }
        (if waited_for { Settled::Failed } else { Settled::Dropped }, times)
    }

    /// Whoever fetched a group is gone without a word. Its readers get an error.
    pub fn lost(&mut self, key: &Key) {
        self.drop_flight(key);
    }

    /// A group has come and is right: its readers have it. Until [`Self::forget`] it counts as on
    /// its way, so that nobody fetches it meanwhile.
    pub fn landed(&mut self, key: &Key) {
        if let Some(flight) = self.flights.get_mut(key) {
            flight.place = Place::Landed;
        }
    }

    /// A group has found its place, or none.
    pub fn forget(&mut self, now: Moment, key: &Key, kept: Kept) {
        let Some(flight) = self.flights.remove(key) else { return };
        if self.looks > 0 {
            self.came_meanwhile.insert(*key);
        }
        if let Some((id, ready)) = flight.origin
            && let Some(work) = self.works.get_mut(&id)
        {
            if flight.class != Class::Demand {
                work.fetched(ready.number, flight.want.group.stored_len);
            }
            if kept == Kept::Nowhere {
                work.no_room(now);
            }
        }
    }

    /// Buffers of a request of `class` are free again.
    pub fn release(&mut self, class: Class, bytes: u64) {
        if let Some(pool) = self.pools.get_mut(pool(class)) {
            pool.release(bytes);
        }
    }
}

/// Whether the cache has a group that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It has.
    Cached,
    /// It took it not: loading ahead is of no use for now.
    Nowhere,
}
