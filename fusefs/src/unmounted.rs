//! Signals that a filesystem is no longer mounted anywhere and its threads have stopped.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

type Waiter = Box<dyn FnOnce() + Send>;

/// A one-shot event: the end of a filesystem.
#[derive(Default)]
pub struct Ended {
    state: Mutex<EndedState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndedState {
    over: bool,
    waiters: Vec<Waiter>,
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ended").field("over", &self.state.lock().over).finish_non_exhaustive()
    }
}

impl Ended {
    /// Blocks until the end.
    pub fn wait(&self) {
        let mut state = self.state.lock();
        while !state.over {
            self.changed.wait(&mut state);
        }
    }

    /// Blocks until the end, for at most `limit`. Returns whether it has ended.
    pub fn within(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.over {
            self.changed.wait_while_for(&mut state, |state| !state.over, limit);
        }
        state.over
    }

    /// Calls `waiter` at the end, on the thread that ends it; at once if it has already ended.
    pub fn then(&self, waiter: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        if state.over {
            drop(state);
            waiter();
        } else {
            state.waiters.push(Box::new(waiter));
        }
    }

    /// Signals the end and runs the waiters.
    pub(crate) fn set(&self) {
        let waiters = {
            let mut state = self.state.lock();
            state.over = true;
            std::mem::take(&mut state.waiters)
        };
        self.changed.notify_all();
        for waiter in waiters {
            waiter();
        }
    }
}

/// Signals the end on drop, so that it is signalled even if the thread panics.
pub(crate) struct EndOnDrop(Arc<Ended>);

impl EndOnDrop {
    pub(crate) fn new(ended: Arc<Ended>) -> Self {
        Self(ended)
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}
