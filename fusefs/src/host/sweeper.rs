//! Periodically retries to release slots that were detached while in use, and releases cache files
//! that were not used for a while.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Host;

/// Pause after a detach; doubles while slots stay in use.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// A cache file without an open is kept for one to two of these.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// The background thread.
#[derive(Debug)]
pub(super) struct Sweeper {
    shared: Arc<SweeperShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct SweeperShared {
    state: Mutex<SweeperState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SweeperState {
    stop: bool,
    /// A detached slot may still be in use.
    due: bool,
}

impl Sweeper {
    pub(super) fn start(host: Arc<Host>) -> io::Result<Self> {
        let shared = Arc::new(SweeperShared::default());
        let theirs = Arc::clone(&shared);
        let sweep = move || theirs.run(&host);
        let thread = std::thread::Builder::new().name("inlay-sweep".into()).spawn(sweep)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Schedules a sweep after a slot was detached while in use.
    pub(super) fn wake(&self) {
        self.shared.state.lock().due = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that sweeps detached slots panicked");
        }
    }
}

impl SweeperShared {
    fn run(&self, host: &Host) {
        let (mut pause, mut swept) = (PAUSE, Instant::now());
        let (mut mark, mut marked) = (0, Instant::now());
        loop {
            let due = {
                let mut state = self.state.lock();
                let limit = if state.due { pause } else { KEPT_FOR };
                let was_due = state.due;
                self.changed.wait_while_for(
                    &mut state,
                    |state| !state.stop && state.due == was_due,
                    limit,
                );
                if state.stop {
                    return;
                }
                state.due
            };
            if marked.elapsed() >= KEPT_FOR {
                (mark, marked) = (host.close_unused_since(mark), Instant::now());
            }
            if due && swept.elapsed() >= pause {
                let left = host.sweep();
                swept = Instant::now();
                pause = if left == 0 { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
                self.state.lock().due = left > 0;
            }
        }
    }
}
