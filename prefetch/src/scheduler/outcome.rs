//! Handles results of requests and groups: arrival, failure, corruption, caching.

use std::collections::HashMap;
use std::time::Duration;

use super::flights::{Company, Place};
use super::state::{Failed, Scheduler, pool};
use super::types::{Moment, RequestId, Settled, WorkId};
use super::work::Ready;
use crate::want::{Class, Key};

impl Scheduler {
    /// Reports the first byte of a response, `after` the request was sent.
    pub fn answered(&mut self, now: Moment, after: Duration) {
        self.link.answered(now, after);
    }

    /// Reports `bytes` of a request that arrived.
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

    /// Reports a successful request. Its groups are settled one by one afterwards.
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

    /// Reports a failed request. Returns what happened to each of its groups that was not settled
    /// yet.
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

    /// Reports a corrupt group; returns what happened to it and how often it was corrupt. It is
    /// refetched for its readers up to `corrupt_retries` times.
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

    /// Reports that the task fetching a group died. The caller fails its readers. For the snapshot
    /// that the group was loaded for, this is a failure like others: it backs off.
    pub fn lost(&mut self, now: Moment, key: &Key) {
        if let Some((id, ready)) = self.gone(key) {
            self.work_failed(now, id, [ready]);
        }
    }

    /// Reports a verified group that its readers have. It counts as in flight until
    /// [`Self::forget`], so that it is not fetched again meanwhile.
    pub fn landed(&mut self, key: &Key) {
        if let Some(flight) = self.flights.get_mut(key) {
            flight.place = Place::Landed;
        }
    }

    /// Ends a flight once its cache insert has finished or failed.
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
            self.tick(now);
            self.file(id);
        }
    }

    /// Frees buffers of a request of `class`.
    pub fn release(&mut self, class: Class, bytes: u64) {
        if let Some(pool) = self.pools.get_mut(pool(class)) {
            pool.release(bytes);
        }
    }
}

/// Whether a group was cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was.
    Cached,
    /// The cache rejected it: prefetching is useless for now.
    Nowhere,
}
