//! Looks again and again at slots that were detached while they were in use, until they are not, and
//! lets go of cached files that were not needed for a while.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Host;

/// The pause after something was detached; it doubles while nothing is let go.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// A cached file that nothing has open is kept for one to two of these.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// A thread that sleeps most of the time.
#[derive(Debug)]
pub(super) struct Sweeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    /// There is something to look at.
    due: bool,
}

impl Sweeper {
    pub(super) fn start(host: Arc<Host>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let sweep = move || theirs.run(&host);
        let thread = std::thread::Builder::new().name("inlay-sweep".into()).spawn(sweep)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Something was detached that is in use.
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
            tracing::error!("the thread that looks at detached slots panicked");
        }
    }
}

impl Shared {
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
