//! The moment when a filesystem is mounted nowhere any more and its threads have stopped.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

type Waiter = Box<dyn FnOnce() + Send>;

/// Tells when a filesystem has ended.
#[derive(Default)]
pub struct Ended {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    over: bool,
    waiters: Vec<Waiter>,
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ended").field("over", &self.state.lock().over).finish_non_exhaustive()
    }
}

impl Ended {
    /// Blocks until then.
    pub fn wait(&self) {
        let mut state = self.state.lock();
        while !state.over {
            self.changed.wait(&mut state);
        }
    }

    /// Blocks until then, but not longer than `limit`. Returns whether it is over.
    pub fn within(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.over {
            self.changed.wait_while_for(&mut state, |state| !state.over, limit);
        }
        state.over
    }

    /// Calls `waiter` then, from the thread that ends; at once if it is over.
    pub fn then(&self, waiter: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        if state.over {
            drop(state);
            waiter();
        } else {
            state.waiters.push(Box::new(waiter));
        }
    }

    /// Now.
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

/// Sets the end when dropped, so that it comes even if the thread panics.
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
