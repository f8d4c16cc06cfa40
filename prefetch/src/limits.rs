//! Concurrency and memory limits of a fetcher.

use std::time::Duration;

/// Limits of a `Fetcher`. Demand and prefetch have separate limits, so a reader never waits for
/// capacity that prefetch holds.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// Concurrent store requests for blocked readers. Default 32.
    pub demand_requests: usize,
    /// Concurrent store requests for prefetch, all classes together. The link estimate usually
    /// allows fewer. Default 16.
    pub ahead_requests: usize,
    /// Buffer bytes, stored and decoded, for blocked readers. A single larger request is still
    /// served, alone. Default 64 MiB.
    pub demand_bytes: u64,
    /// Buffer bytes, stored and decoded, for prefetch. Default 64 MiB.
    pub ahead_bytes: u64,
    /// Groups queued for read-ahead; further hints are dropped. Default 256.
    pub read_ahead_queue: usize,
    /// Maximum bytes per request when neighbouring groups are coalesced. Default 4 MiB.
    pub request_bytes: u64,
    /// Maximum gap between two groups of a blob that are still coalesced, in bytes; the gap is
    /// fetched and discarded. Default 16 KiB.
    pub gap_bytes: u64,
    /// Time after which a blocked reader fails. Default 30 s.
    pub deadline: Duration,
    /// Total time for one store request including retries. Shorter than `deadline`, so that readers
    /// get the store's own, more specific error. Default 25 s.
    pub store_budget: Duration,
    /// How often a corrupt group is refetched for a reader. Default 1.
    pub corrupt_retries: u32,
    /// Threads that decode for readers, at least 1. Default: one per core.
    pub decoders: usize,
    /// Low-priority threads that decode and cache prefetched groups, at least 1. Default: one per
    /// core, at most 4.
    pub ahead_workers: usize,
    /// Threads that write into the cache, at least 1. Default 2.
    pub inserters: usize,
    /// Decoded bytes queued for the cache after their readers were served; anything above is not
    /// cached. Default 16 MiB.
    pub insert_backlog_bytes: u64,
    /// Decoded bytes kept in memory because the cache did not accept them. Default 32 MiB.
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
