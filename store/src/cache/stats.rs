//! Counters of a cache.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one open cache. Each is exact, but together they are not a consistent snapshot.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) inserted_groups: AtomicU64,
    pub(super) inserted_bytes: AtomicU64,
    pub(super) refused_full: AtomicU64,
    pub(super) write_failures: AtomicU64,
    pub(super) read_failures: AtomicU64,
    pub(super) verified: AtomicU64,
    pub(super) verify_failures: AtomicU64,
    pub(super) sealed: AtomicU64,
    pub(super) contradictions: AtomicU64,
    pub(super) evictions: AtomicU64,
    pub(super) evicted_bytes: AtomicU64,
}

/// Statistics of a cache since this process opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct CacheStats {
    /// Cache hits.
    pub hits: u64,
    /// Cache misses.
    pub misses: u64,
    /// Groups stored by this process.
    pub inserted_groups: u64,
    /// Decoded bytes of these groups.
    pub inserted_bytes: u64,
    /// Groups not stored because the budget was exhausted.
    pub refused_full: u64,
    /// Failed writes.
    pub write_failures: u64,
    /// Failed reads, including reads of truncated files.
    pub read_failures: u64,
    /// Files that passed verification.
    pub verified: u64,
    /// Files that failed verification and were removed.
    pub verify_failures: u64,
    /// Disk usage of the whole directory in bytes, as this process last saw it.
    pub disk_bytes: u64,
    /// The budget, in bytes.
    pub budget_bytes: u64,
    /// Large files completed and sealed.
    pub sealed: u64,
    /// Groups that contradicted bytes that other groups had stored for the same content.
    pub contradictions: u64,
    /// Files evicted.
    pub evictions: u64,
    /// Bytes freed by eviction.
    pub evicted_bytes: u64,
    /// Whether the disk accepts writes.
    pub disk: DiskState,
}

/// Whether the disk of a cache accepts writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// The last write succeeded.
    #[default]
    Good,
    /// The last write failed; writes are paused.
    Failing,
}

impl Counters {
    /// Returns the counters. The other fields keep their defaults; the caller sets them.
    pub(super) fn stats(&self) -> CacheStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: load(&self.hits),
            misses: load(&self.misses),
            inserted_groups: load(&self.inserted_groups),
            inserted_bytes: load(&self.inserted_bytes),
            refused_full: load(&self.refused_full),
            write_failures: load(&self.write_failures),
            read_failures: load(&self.read_failures),
            verified: load(&self.verified),
            verify_failures: load(&self.verify_failures),
            sealed: load(&self.sealed),
            contradictions: load(&self.contradictions),
            evictions: load(&self.evictions),
            evicted_bytes: load(&self.evicted_bytes),
            ..CacheStats::default()
        }
    }
}

/// Increments a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
