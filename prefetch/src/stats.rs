//! What a fetcher counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters and gauges of one fetcher. Each is exact; together they are no snapshot of one instant.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) demand_requests: AtomicU64,
    pub(crate) read_ahead_requests: AtomicU64,
    pub(crate) fetched_bytes: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) promoted: AtomicU64,
    pub(crate) hints_dropped: AtomicU64,
    pub(crate) corrupt: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) not_cached: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) tasks: AtomicU64,
}

/// What a fetcher has done since it was made, and what it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchFigures {
    /// Requests to the store for readers that waited.
    pub demand_requests: u64,
    /// Requests to the store for read-ahead.
    pub read_ahead_requests: u64,
    /// Bytes that the store gave.
    pub fetched_bytes: u64,
    /// Groups verified and decoded.
    pub groups: u64,
    /// Readers that found their group queued or in flight.
    pub joined: u64,
    /// Groups that waited for read-ahead when a reader asked for them.
    pub promoted: u64,
    /// Hints dropped because too many waited.
    pub hints_dropped: u64,
    /// Groups that came with wrong bytes.
    pub corrupt: u64,
    /// Groups whose readers got an error.
    pub failed: u64,
    /// Groups that the cache did not take.
    pub not_cached: u64,
    /// Now: readers that wait.
    pub waiting: u64,
    /// Now: requests that are under way, or whose groups are being decoded or cached.
    pub tasks: u64,
    /// Now: groups queued, in flight or being cached.
    pub flights: u64,
    /// Now: bytes of buffers, of both classes.
    pub buffer_bytes: u64,
}

impl Counters {
    pub(crate) fn figures(&self, flights: u64, buffer_bytes: u64) -> FetchFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetchFigures {
            demand_requests: load(&self.demand_requests),
            read_ahead_requests: load(&self.read_ahead_requests),
            fetched_bytes: load(&self.fetched_bytes),
            groups: load(&self.groups),
            joined: load(&self.joined),
            promoted: load(&self.promoted),
            hints_dropped: load(&self.hints_dropped),
            corrupt: load(&self.corrupt),
            failed: load(&self.failed),
            not_cached: load(&self.not_cached),
            waiting: load(&self.waiting),
            tasks: load(&self.tasks),
            flights,
            buffer_bytes,
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
