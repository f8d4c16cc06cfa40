//! Leases of captures in flight. A lease keeps on disk what its capture may read, without making
//! other operations wait.
//!
//! Mounts, unmounts and the sandbox's end proceed concurrently. Discarded changes disappear from
//! view immediately, and from disk when the last capture has ended. Removing the sandbox cancels
//! its captures: one that has not begun to publish its snapshot never will.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inlay_capture::Cancel;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Sandbox;
use super::mounted::{MountFile, MountFileState};
use crate::daemon::error::DaemonError;

/// Maximum number of concurrent captures of one sandbox. Others queue until their deadlines.
const CAPTURES_MAX: usize = 4;
/// How long the removal of a sandbox waits for cancelled captures to stop.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// Captures of one sandbox.
#[derive(Debug)]
pub(super) struct Captures {
    turns: Arc<Semaphore>,
    state: Mutex<LeaseState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct LeaseState {
    under_way: HashMap<u64, Cancel>,
    next: u64,
    /// Mounts to forget when no capture is in flight.
    later: Vec<MountFile>,
    /// The sandbox is being removed.
    closed: bool,
}

impl Default for Captures {
    fn default() -> Self {
        let turns = Arc::new(Semaphore::new(CAPTURES_MAX));
        Self { turns, state: Mutex::default(), ended: Condvar::new() }
    }
}

/// A capture in flight, until dropped. Dropping it may block.
pub(super) struct Lease {
    sandbox: Arc<Sandbox>,
    number: u64,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Sandbox {
    /// Begins a capture, after waiting for a permit. `cancel` stops it.
    pub(super) async fn lease(self: &Arc<Self>, cancel: Cancel) -> Result<Lease, DaemonError> {
        let turn = Arc::clone(&self.captures.turns).acquire_owned().await.ok();
        let mut state = self.captures.state.lock();
        if state.closed {
            return Err(DaemonError::BeingRemoved(self.record.lock().name.clone()));
        }
        let number = state.next;
        state.next += 1;
        state.under_way.insert(number, cancel);
        Ok(Lease { sandbox: Arc::clone(self), number, _turn: turn })
    }

    /// Whether captures are in flight.
    pub(super) fn is_captured(&self) -> bool {
        !self.captures.state.lock().under_way.is_empty()
    }

    /// Removes the record and changes of an unmounted mount: now, or when no capture can read them
    /// any more. Blocks.
    pub(super) fn forget_mount(&self, file: &MountFile) -> Result<(), DaemonError> {
        let file = MountFile { place: MountFileState::Discarded, ..file.clone() };
        // First: a capture that begins from here on does not include the mount. Durable: if the
        // daemon dies, the next one removes it.
        file.write(&self.layout)?;
        {
            let mut state = self.captures.state.lock();
            if !state.under_way.is_empty() {
                state.later.push(file);
                return Ok(());
            }
        }
        file.remove(&self.layout)
    }

    /// Cancels all captures and refuses new ones. Waits at most [`SETTLE_WITHIN`] for them to
    /// release the sandbox's files; one that waits for its store notices when the store answers.
    /// Blocks.
    pub(super) fn cancel_captures(&self) {
        let until = Instant::now() + SETTLE_WITHIN;
        let mut state = self.captures.state.lock();
        state.closed = true;
        state.under_way.values().for_each(Cancel::cancel);
        while !state.under_way.is_empty() {
            if self.captures.ended.wait_until(&mut state, until).timed_out() {
                tracing::warn!(
                    sandbox = %self.id(),
                    captures = state.under_way.len(),
                    "removing a sandbox while its cancelled snapshots still wait for their stores"
                );
                return;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let captures = &self.sandbox.captures;
        let later = {
            let mut state = captures.state.lock();
            state.under_way.remove(&self.number);
            if state.under_way.is_empty() { std::mem::take(&mut state.later) } else { Vec::new() }
        };
        for file in later {
            if let Err(error) = file.remove(&self.sandbox.layout) {
                tracing::warn!(
                    %error,
                    sandbox = %self.sandbox.id(),
                    "can't delete discarded changes; they stay on disk until the sandbox is removed"
                );
            }
        }
        captures.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use inlay_sandbox::Layout;
    use tokio::runtime::Runtime;

    use super::*;
    use crate::daemon::sandboxes::damaged::unknown;
    use crate::daemon::sandboxes::mounted::files;
    use crate::daemon::sandboxes::mounted::tests::file;

    #[test]
    fn a_capture_that_begins_during_a_removal_does_not_see_the_mount() {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), Runtime::new().unwrap());
        let id = "sb-0123456789ab".parse().unwrap();
        let sandbox = Sandbox::new(Layout::of(dir.path(), &id), unknown(&id));
        let layout = sandbox.layout();
        let changes = layout.mount_upper(1).join("upper");
        fs::create_dir_all(&changes).unwrap();
        file(1).write(layout).unwrap();
        // Their removal takes a while.
        (0..5000).for_each(|name| fs::write(changes.join(name.to_string()), "").unwrap());
        thread::scope(|scope| {
            let forgotten = scope.spawn(|| sandbox.forget_mount(&file(1)));
            let until = Instant::now() + Duration::from_mins(1);
            while changes.exists() {
                assert!(Instant::now() < until);
            }
            let lease = runtime.block_on(sandbox.lease(Cancel::default())).unwrap();
            let seen = files(layout).unwrap();
            assert!(seen.iter().all(|file| file.place == MountFileState::Discarded), "{seen:?}");
            drop(lease);
            forgotten.join().unwrap().unwrap();
        });
        assert!(files(layout).unwrap().is_empty());
    }
}
