//! Totals of prefetching and of recorded starts, including snapshots detached since.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use inlay_prefetch::scheduler::WorkProgress;
use parking_lot::Mutex;

/// Totals of all starts of a daemon.
#[derive(Debug, Default)]
pub(in crate::daemon) struct StartTotals {
    ended: Mutex<Loaded>,
    recorded: AtomicU64,
    failed: AtomicU64,
}

/// Prefetch totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::daemon) struct Loaded {
    /// Stored bytes fetched.
    pub(in crate::daemon) fetched: u64,
    /// Of these, bytes that were read.
    pub(in crate::daemon) used: u64,
    /// Of these, bytes that were not read before their snapshot was detached.
    pub(in crate::daemon) wasted: u64,
}

/// Outcome of recording a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Recorded {
    /// Saved in the store.
    Saved,
    /// The store rejected it.
    Failed,
}

impl StartTotals {
    /// Ends the prefetching of a snapshot with `end`, and adds the stats it returns to the totals.
    pub(in crate::daemon) fn end(&self, end: impl FnOnce() -> Option<WorkProgress>) {
        // Under the lock, so that no scrape sees it ended and not yet counted.
        let mut ended = self.ended.lock();
        if let Some(work) = end() {
            ended.fetched += work.fetched_bytes;
            ended.used += work.used_bytes;
            ended.wasted += work.fetched_bytes.saturating_sub(work.used_bytes);
        }
    }

    /// Returns the totals, including the stats of prefetches in progress from `going_on`.
    pub(in crate::daemon) fn loaded(&self, going_on: impl FnOnce() -> Vec<WorkProgress>) -> Loaded {
        let ended = self.ended.lock();
        let mut all = *ended;
        for work in going_on() {
            all.fetched += work.fetched_bytes;
            all.used += work.used_bytes;
        }
        all
    }

    /// Counts a recorded start.
    pub(in crate::daemon) fn recorded(&self, how: Recorded) {
        match how {
            Recorded::Saved => &self.recorded,
            Recorded::Failed => &self.failed,
        }
        .fetch_add(1, Relaxed);
    }

    /// Returns the numbers of starts recorded and failed to record.
    pub(in crate::daemon) fn recordings(&self) -> (u64, u64) {
        (self.recorded.load(Relaxed), self.failed.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_include_ended_work() {
        let totals = StartTotals::default();
        let work = WorkProgress { fetched_bytes: 100, used_bytes: 30, ..WorkProgress::default() };
        let before = totals.loaded(|| vec![work]);
        assert_eq!(before, Loaded { fetched: 100, used: 30, wasted: 0 });
        totals.end(|| Some(work));
        totals.end(|| None);
        assert_eq!(totals.loaded(Vec::new), Loaded { wasted: 70, ..before });
    }
}
