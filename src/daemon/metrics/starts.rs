//! What was loaded ahead and what was recorded, for snapshots that are attached no more, too.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use inlay_prefetch::scheduler::WorkFigures;
use parking_lot::Mutex;

/// Totals of all starts of a daemon.
#[derive(Debug, Default)]
pub(in crate::daemon) struct StartTotals {
    ended: Mutex<Loaded>,
    recorded: AtomicU64,
    failed: AtomicU64,
}

/// What was loaded ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::daemon) struct Loaded {
    /// Stored bytes.
    pub(in crate::daemon) fetched: u64,
    /// Of these, what was read.
    pub(in crate::daemon) used: u64,
    /// Of these, what can't be read any more and was not.
    pub(in crate::daemon) wasted: u64,
}

/// How a start's recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Recorded {
    /// It is in the store.
    Saved,
    /// The store did not take it.
    Failed,
}

impl StartTotals {
    /// The loading of a snapshot ends as `end` says, which gives what was loaded.
    pub(in crate::daemon) fn end(&self, end: impl FnOnce() -> Option<WorkFigures>) {
        // Under the lock, so that nobody sees it gone and not counted.
        let mut ended = self.ended.lock();
        if let Some(work) = end() {
            ended.fetched += work.fetched_bytes;
            ended.used += work.used_bytes;
            ended.wasted += work.fetched_bytes.saturating_sub(work.used_bytes);
        }
    }

    /// What was loaded, with what `going_on` says of those that have not ended.
    pub(in crate::daemon) fn loaded(&self, going_on: impl FnOnce() -> Vec<WorkFigures>) -> Loaded {
        let ended = self.ended.lock();
        let mut all = *ended;
        for work in going_on() {
            all.fetched += work.fetched_bytes;
            all.used += work.used_bytes;
        }
        all
    }

    /// A start was recorded, or should have been.
    pub(in crate::daemon) fn recorded(&self, how: Recorded) {
        match how {
            Recorded::Saved => &self.recorded,
            Recorded::Failed => &self.failed,
        }
        .fetch_add(1, Relaxed);
    }

    /// How many starts were recorded, and how many could not be.
    pub(in crate::daemon) fn recordings(&self) -> (u64, u64) {
        (self.recorded.load(Relaxed), self.failed.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_counted() {
        let totals = StartTotals::default();
        let work = WorkFigures { fetched_bytes: 100, used_bytes: 30, ..WorkFigures::default() };
        let before = totals.loaded(|| vec![work]);
        assert_eq!(before, Loaded { fetched: 100, used: 30, wasted: 0 });
        totals.end(|| Some(work));
        totals.end(|| None);
        assert_eq!(totals.loaded(Vec::new), Loaded { wasted: 70, ..before });
    }
}
