//! Tracks whether the disk accepts writes. After a failure, writes pause for a while, and one
//! warning is logged, however many writers there are.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CacheError;
use super::stats::DiskState;

/// The health of a disk.
#[derive(Debug)]
pub(super) struct Health {
    pause: Duration,
    state: Mutex<HealthState>,
}

#[derive(Debug, Clone, Copy)]
enum HealthState {
    Good,
    Failing { retry_at: Option<Instant> },
}

impl Health {
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, state: Mutex::new(HealthState::Good) }
    }

    /// Returns whether a write may be attempted now.
    pub(super) fn may_write(&self) -> bool {
        match *self.state.lock() {
            HealthState::Good => true,
            // `None` is a pause too long for the clock: it never ends.
            HealthState::Failing { retry_at } => retry_at.is_some_and(|at| Instant::now() >= at),
        }
    }

    /// Returns the outcome of the last write.
    pub(super) fn disk(&self) -> DiskState {
        match *self.state.lock() {
            HealthState::Good => DiskState::Good,
            HealthState::Failing { .. } => DiskState::Failing,
        }
    }

    /// Records a successful write.
    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        if matches!(*state, HealthState::Failing { .. }) {
            *state = HealthState::Good;
            drop(state);
            tracing::info!("the cache stores groups again");
        }
    }

    /// Records a failed write and starts the pause. Logs a warning on the first failure.
    pub(super) fn failed(&self, error: &CacheError) {
        let retry_at = Instant::now().checked_add(self.pause);
        let mut state = self.state.lock();
        let first = matches!(*state, HealthState::Good);
        *state = HealthState::Failing { retry_at };
        drop(state);
        if first {
            tracing::warn!(
                %error,
                "the cache stores nothing for now: reads go on, from the store; \
                 free space or mend the disk"
            );
        }
    }
}
