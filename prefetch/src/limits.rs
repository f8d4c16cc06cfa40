//! How much may be going on at once.

use std::time::Duration;

/// The bounds of a `Fetcher`. Demand and everything ahead of it have bounds of their own, so that a
/// reader never waits for room that something else takes.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// Requests to the store for readers that wait. Default 32.
    pub demand_requests: usize,
    /// Requests to the store ahead of readers, all classes together. What the link takes is mostly
    /// less. Default 16.
    pub ahead_requests: usize,
    /// Bytes of buffers, stored and decoded, for readers that wait. A single larger request is
    /// still served, alone. Default 64 MiB.
    pub demand_bytes: u64,
    /// Bytes of buffers, stored and decoded, ahead of readers. Default 64 MiB.
    pub ahead_bytes: u64,
    /// Groups that wait to be read ahead; further hints are dropped. Default 256.
    pub read_ahead_queue: usize,
    /// The most bytes that one request spans when neighbouring groups are fetched together.
    /// Default 4 MiB.
    pub request_bytes: u64,
    /// How far apart in a blob two groups may be and still be fetched together, in bytes that are
    /// fetched for nothing. Default 16 KiB.
    pub gap_bytes: u64,
    /// How long a reader waits before it gets an error. Default 30 s.
    pub deadline: Duration,
    /// How long the store is asked and asked again for one request, so that its own error, which
    /// says more, comes before the deadline. Default 25 s.
    pub store_budget: Duration,
    /// How often a group that came with wrong bytes is fetched again for a reader. Default 1.
    pub corrupt_retries: u32,
    /// Threads that decode for readers, at least 1. Default: one a core.
    pub decoders: usize,
    /// Threads of low priority that decode and store ahead of readers, at least 1. Default: one a
    /// core, 4 at most.
    pub ahead_workers: usize,
    /// Threads that write into the cache, at least 1. Default 2.
    pub inserters: usize,
    /// Decoded bytes that wait to be written into the cache after their readers have got them;
    /// what is above that is not cached. Default 16 MiB.
    pub insert_backlog_bytes: u64,
    /// Decoded bytes kept in memory because the cache did not take them. Default 32 MiB.
    pub recent_bytes: u64,
}

impl Default for FetchLimits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            demand_requests: 32,
            ahead_requests: 16,
            demand_bytes: 64 << 20,
            ahead_bytes: 64 << 20,
            read_ahead_queue: 256,
            request_bytes: 4 << 20,
            gap_bytes: 16 << 10,
            deadline: Duration::from_secs(30),
            store_budget: Duration::from_secs(25),
            corrupt_retries: 1,
            decoders: cores,
            ahead_workers: cores.min(4),
            inserters: 2,
            insert_backlog_bytes: 16 << 20,
            recent_bytes: 32 << 20,
        }
    }
}
