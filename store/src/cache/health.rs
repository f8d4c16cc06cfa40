//! Whether the disk takes writes: after a failure nothing is written for a while, and one warning
//! tells of it, however many writers there are.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CacheError;
use super::stats::DiskState;

/// The state of a disk that may fail.
#[derive(Debug)]
pub(super) struct Health {
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Good,
    Failing { retry_at: Option<Instant> },
}

impl Health {
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, state: Mutex::new(State::Good) }
    }

    /// Whether a write may be tried now.
    pub(super) fn may_write(&self) -> bool {
        match *self.state.lock() {
            State::Good => true,
            // A pause too long for the clock never ends.
            State::Failing { retry_at } => retry_at.is_some_and(|at| Instant::now() >= at),
        }
    }

    /// What the disk last did.
    pub(super) fn disk(&self) -> DiskState {
        match *self.state.lock() {
            State::Good => DiskState::Good,
            State::Failing { .. } => DiskState::Failing,
        }
    }

    /// A write was done.
    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Failing { .. }) {
            *state = State::Good;
            drop(state);
            tracing::info!("the cache stores again");
        }
    }

    /// A write failed.
    pub(super) fn failed(&self, error: &CacheError) {
        let retry_at = Instant::now().checked_add(self.pause);
        let mut state = self.state.lock();
        let first = matches!(*state, State::Good);
        *state = State::Failing { retry_at };
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
