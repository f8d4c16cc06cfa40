//! What a fetcher counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::{Histogram, HistogramFigures};
use crate::want::Class;

/// One counter for each class.
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

/// Counters and gauges of one fetcher. Each is exact; together they are no snapshot of one instant.
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

/// What a fetcher has done since it was made, and what it is doing. Arrays are by
/// [`Class::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FetchFigures {
    /// Requests to the store.
    pub requests: [u64; Class::ALL.len()],
    /// Bytes that the store gave.
    pub bytes: [u64; Class::ALL.len()],
    /// Groups verified and decoded.
    pub groups: [u64; Class::ALL.len()],
    /// Requests that failed.
    pub failed_requests: [u64; Class::ALL.len()],
    /// Groups that came in the request of a neighbour.
    pub coalesced: u64,
    /// Readers that found their group queued or in flight.
    pub joined: u64,
    /// Groups that waited for something less urgent when a reader asked for them.
    pub promoted: u64,
    /// Hints dropped because too many waited.
    pub hints_dropped: u64,
    /// Requests that were stopped because nobody wanted them any more.
    pub cancelled: u64,
    /// Groups that came with wrong bytes.
    pub corrupt: u64,
    /// Groups whose readers got an error.
    pub failed: u64,
    /// Groups that the cache did not take.
    pub not_cached: u64,
    /// How long readers waited for groups that were on their way already.
    pub wait_in_flight: HistogramFigures,
    /// How long readers waited for groups that were fetched for them.
    pub wait_store: HistogramFigures,
    /// Now: readers that wait.
    pub waiting: u64,
    /// Now: requests that are under way, or whose groups are being decoded or cached.
    pub tasks: u64,
    /// Now: groups queued, in flight or being cached.
    pub flights: u64,
    /// Now: bytes of buffers, of all classes.
    pub buffer_bytes: u64,
    /// Now: groups that wait for their turn and are known by what they are.
    pub queued: [u64; Class::ALL.len()],
}

impl FetchFigures {
    /// Bytes that the store gave, of all classes.
    pub fn fetched_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Requests to the store for readers that waited.
    pub fn demand_requests(&self) -> u64 {
        self.of(&self.requests, Class::Demand)
    }

    /// Requests to the store ahead of readers, of all other classes.
    pub fn ahead_requests(&self) -> u64 {
        self.requests.iter().sum::<u64>() - self.demand_requests()
    }

    /// Adds what another fetcher has done and does.
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

    /// What was done, without what is being done now.
    #[must_use]
    pub fn done(self) -> Self {
        let queued = [0; Class::ALL.len()];
        Self { waiting: 0, tasks: 0, flights: 0, buffer_bytes: 0, queued, ..self }
    }

    /// The number of one class.
    pub fn of(&self, numbers: &[u64; Class::ALL.len()], class: Class) -> u64 {
        numbers.get(class.place()).copied().unwrap_or(0)
    }
}

/// What only the table knows.
pub(crate) struct Gauges {
    pub(crate) flights: u64,
    pub(crate) buffer_bytes: u64,
    pub(crate) queued: [u64; Class::ALL.len()],
}

impl Counters {
    pub(crate) fn figures(&self, gauges: &Gauges) -> FetchFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetchFigures {
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
            wait_in_flight: self.wait_in_flight.figures(),
            wait_store: self.wait_store.figures(),
            waiting: load(&self.waiting),
            tasks: load(&self.tasks),
            flights: gauges.flights,
            buffer_bytes: gauges.buffer_bytes,
            queued: gauges.queued,
        }
    }
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One more, until it is dropped.
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
        let one = counters.figures(&gauges);
        let mut both = one;
        both.add(&one);
        assert_eq!((both.demand_requests(), both.joined, both.wait_store.count()), (4, 2, 2));
        assert_eq!((both.waiting, both.flights, both.buffer_bytes), (2, 10, 14));
        assert_eq!(both.queued, [2; Class::ALL.len()]);
        let mut past = one.done();
        past.add(&FetchFigures::default());
        assert_eq!((past.demand_requests(), past.joined), (2, 1));
        assert_eq!((past.waiting, past.flights, past.buffer_bytes), (0, 0, 0));
        assert_eq!(past.queued, [0; Class::ALL.len()]);
    }
}
