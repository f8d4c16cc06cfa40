//! Counters and gauges of a fetcher.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::{Histogram, HistogramCounts};
use crate::want::Class;

/// One counter per class.
#[derive(Debug, Default)]
pub(crate) struct ByClass([AtomicU64; Class::ALL.len()]);

impl ByClass {
    pub(crate) fn add(&self, class: Class, number: u64) {
        if let Some(counter) = self.0.get(class.place()) {
            counter.fetch_add(number, Ordering::Relaxed);
        }
    }

    fn load(&self) -> [u64; Class::ALL.len()] {
        self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Counters and gauges of one fetcher. Each is exact; together they are not an atomic snapshot.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: ByClass,
    pub(crate) bytes: ByClass,
    pub(crate) groups: ByClass,
    pub(crate) failed_requests: ByClass,
    pub(crate) coalesced: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) promoted: AtomicU64,
    pub(crate) hints_dropped: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) corrupt: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) not_cached: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) tasks: AtomicU64,
    pub(crate) wait_in_flight: Histogram,
    pub(crate) wait_store: Histogram,
}

/// Stats of a fetcher since its creation. Arrays are indexed like [`Class::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FetchStats {
    /// Requests to the store.
    pub requests: [u64; Class::ALL.len()],
    /// Bytes received from the store.
    pub bytes: [u64; Class::ALL.len()],
    /// Groups verified and decoded.
    pub groups: [u64; Class::ALL.len()],
    /// Requests that failed.
    pub failed_requests: [u64; Class::ALL.len()],
    /// Groups fetched along with a neighbour's request.
    pub coalesced: u64,
    /// Readers that found their group already demanded or in flight.
    pub joined: u64,
    /// Groups queued for a lower class when a reader requested them.
    pub promoted: u64,
    /// Hints dropped because the queue was full.
    pub hints_dropped: u64,
    /// Requests cancelled because no reader or snapshot needed them any more.
    pub cancelled: u64,
    /// Corrupt groups received.
    pub corrupt: u64,
    /// Groups whose readers got an error.
    pub failed: u64,
    /// Groups that the cache rejected.
    pub not_cached: u64,
    /// Wait times of readers whose group was already queued or in flight.
    pub wait_in_flight: HistogramCounts,
    /// Wait times of readers whose group was fetched for them.
    pub wait_store: HistogramCounts,
    /// Gauge: readers waiting.
    pub waiting: u64,
    /// Gauge: requests in flight, or with groups being decoded or cached.
    pub tasks: u64,
    /// Gauge: groups queued, in flight or being cached.
    pub flights: u64,
    /// Gauge: buffer bytes, all classes.
    pub buffer_bytes: u64,
    /// Gauge: probed groups that are queued.
    pub queued: [u64; Class::ALL.len()],
}

impl FetchStats {
    /// Returns the bytes received from the store, all classes.
    pub fn fetched_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Returns the number of demand requests.
    pub fn demand_requests(&self) -> u64 {
        self.of(&self.requests, Class::Demand)
    }

    /// Returns the number of prefetch requests: all classes but demand.
    pub fn ahead_requests(&self) -> u64 {
        self.requests.iter().sum::<u64>() - self.demand_requests()
    }

    /// Adds the stats of another fetcher.
    pub fn add(&mut self, other: &Self) {
        let arrays = [
            (&mut self.requests, &other.requests),
            (&mut self.bytes, &other.bytes),
            (&mut self.groups, &other.groups),
            (&mut self.failed_requests, &other.failed_requests),
            (&mut self.queued, &other.queued),
        ];
        for (one, more) in arrays {
            one.iter_mut().zip(more).for_each(|(one, more)| *one += more);
        }
        let numbers = [
            (&mut self.coalesced, other.coalesced),
            (&mut self.joined, other.joined),
            (&mut self.promoted, other.promoted),
            (&mut self.hints_dropped, other.hints_dropped),
            (&mut self.cancelled, other.cancelled),
            (&mut self.corrupt, other.corrupt),
            (&mut self.failed, other.failed),
            (&mut self.not_cached, other.not_cached),
            (&mut self.waiting, other.waiting),
            (&mut self.tasks, other.tasks),
            (&mut self.flights, other.flights),
            (&mut self.buffer_bytes, other.buffer_bytes),
        ];
        for (one, more) in numbers {
            *one += more;
        }
        self.wait_in_flight.add(&other.wait_in_flight);
        self.wait_store.add(&other.wait_store);
    }

    /// Returns the counters with all gauges zeroed.
    #[must_use]
    pub fn done(self) -> Self {
        let queued = [0; Class::ALL.len()];
        Self { waiting: 0, tasks: 0, flights: 0, buffer_bytes: 0, queued, ..self }
    }

    /// Returns the value of one class.
    pub fn of(&self, numbers: &[u64; Class::ALL.len()], class: Class) -> u64 {
        numbers.get(class.place()).copied().unwrap_or(0)
    }
}

/// Gauges read from the table under its lock.
pub(crate) struct Gauges {
    pub(crate) flights: u64,
    pub(crate) buffer_bytes: u64,
    pub(crate) queued: [u64; Class::ALL.len()],
}

impl Counters {
    pub(crate) fn stats(&self, gauges: &Gauges) -> FetchStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetchStats {
            requests: self.requests.load(),
            bytes: self.bytes.load(),
            groups: self.groups.load(),
            failed_requests: self.failed_requests.load(),
            coalesced: load(&self.coalesced),
            joined: load(&self.joined),
            promoted: load(&self.promoted),
            hints_dropped: load(&self.hints_dropped),
            cancelled: load(&self.cancelled),
            corrupt: load(&self.corrupt),
            failed: load(&self.failed),
            not_cached: load(&self.not_cached),
            wait_in_flight: self.wait_in_flight.stats(),
            wait_store: self.wait_store.stats(),
            waiting: load(&self.waiting),
            tasks: load(&self.tasks),
            flights: gauges.flights,
            buffer_bytes: gauges.buffer_bytes,
            queued: gauges.queued,
        }
    }
}

/// Increments a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// RAII guard that increments a gauge until dropped.
pub(crate) struct Gauged<'a>(&'a AtomicU64);

impl<'a> Gauged<'a> {
    pub(crate) fn new(gauge: &'a AtomicU64) -> Self {
        count(gauge);
        Self(gauge)
    }
}

impl Drop for Gauged<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_several_fetchers_add_up() {
        let counters = Counters::default();
        counters.requests.add(Class::Demand, 2);
        count(&counters.joined);
        counters.wait_store.take(std::time::Duration::from_millis(3));
        let gauges = Gauges { flights: 5, buffer_bytes: 7, queued: [1; Class::ALL.len()] };
        let _waiting = Gauged::new(&counters.waiting);
        let one = counters.stats(&gauges);
        let mut both = one;
        both.add(&one);
        assert_eq!((both.demand_requests(), both.joined, both.wait_store.count()), (4, 2, 2));
        assert_eq!((both.waiting, both.flights, both.buffer_bytes), (2, 10, 14));
        assert_eq!(both.queued, [2; Class::ALL.len()]);
        let mut past = one.done();
        past.add(&FetchStats::default());
        assert_eq!((past.demand_requests(), past.joined), (2, 1));
        assert_eq!((past.waiting, past.flights, past.buffer_bytes), (0, 0, 0));
        assert_eq!(past.queued, [0; Class::ALL.len()]);
    }
}
