//! What a cache counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one open cache. Each is exact; together they are no snapshot of one instant.
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

/// What happened in a cache since this process opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct CacheFigures {
    /// Reads answered.
    pub hits: u64,
    /// Reads not answered.
    pub misses: u64,
    /// Groups stored by this process.
    pub inserted_groups: u64,
    /// Their decoded bytes.
    pub inserted_bytes: u64,
    /// Groups not stored because the budget is used up.
    pub refused_full: u64,
    /// Groups not stored because the disk failed.
    pub write_failures: u64,
    /// Reads that the disk failed, or found cut short.
    pub read_failures: u64,
    /// Files whose contents were read and proved right.
    pub verified: u64,
    /// Files whose contents were wrong and that were removed.
    pub verify_failures: u64,
    /// Bytes that the whole directory's files take on disk, as this process last saw it.
    pub disk_bytes: u64,
    /// How many they may take.
    pub budget_bytes: u64,
    /// Large files that became whole.
    pub sealed: u64,
    /// Groups that did not fit to what other groups of the same contents say.
    pub contradictions: u64,
    /// Files that were evicted.
    pub evictions: u64,
    /// What they took.
    pub evicted_bytes: u64,
    /// Whether the disk takes writes.
    pub disk: DiskState,
}

/// Whether a cache's disk takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// It did when it was last tried.
    #[default]
    Good,
    /// It did not; nothing is stored for a while.
    Failing,
}

impl Counters {
    /// What only the cache knows is left as it is by default.
    pub(super) fn figures(&self) -> CacheFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheFigures {
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
            ..CacheFigures::default()
        }
    }
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
