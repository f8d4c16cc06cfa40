//! Looks again and again at slots that were detached while they were in use, until they are not.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Host;

/// The pause after something was detached; it doubles while nothing is let go.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// A thread that sleeps while nothing is detached.
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
        let mut pause = PAUSE;
        loop {
            {
                let mut state = self.state.lock();
                self.changed.wait_while(&mut state, |state| !state.stop && !state.due);
                self.changed.wait_while_for(&mut state, |state| !state.stop, pause);
                if state.stop {
                    return;
                }
                state.due = false;
            }
            if host.sweep() == 0 {
                pause = PAUSE;
            } else {
                pause = (pause * 2).min(PAUSE_MAX);
                self.state.lock().due = true;
            }
        }
    }
}
