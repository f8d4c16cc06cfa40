//! Reopens the snapshots of earlier servers, off the FUSE threads.
//!
//! Opening may wait for the store. A request for a snapshot that is not open yet stays unanswered:
//! the kernel keeps it and resends it when notified after the snapshot was opened. So an
//! unresponsive store blocks only the readers of its snapshots, as long as fewer than
//! [`THREADS_MAX`] of them are being opened. With that many, all other snapshots wait until one of
//! them is open or has failed.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Attached, Host};
use crate::notify::resend;

/// Maximum snapshots opened concurrently.
const THREADS_MAX: usize = 16;

/// The queue of snapshots to open. Its threads exit when it is empty.
#[derive(Debug, Default)]
pub(super) struct Openers {
    state: Mutex<OpenersState>,
}

#[derive(Debug, Default)]
struct OpenersState {
    /// Each slot at most once.
    queue: VecDeque<Arc<Attached>>,
    running: usize,
}

impl Host {
    /// Queues a snapshot to be opened on another thread. A no-op while it is already queued.
    pub(super) fn open_elsewhere(self: &Arc<Self>, attached: &Arc<Attached>) -> io::Result<()> {
        let mut state = self.openers.state.lock();
        if !attached.queue_once() {
            return Ok(());
        }
        state.queue.push_back(Arc::clone(attached));
        if state.running == THREADS_MAX {
            return Ok(());
        }
        let host = Arc::clone(self);
        let opening = move || host.open_queued();
        match std::thread::Builder::new().name("inlay-open".into()).spawn(opening) {
            Ok(_) => state.running += 1,
            // A running thread will get to it; with none, the next request tries again.
            Err(error) if state.running == 0 => {
                state.queue.clear();
                attached.queued_no_more();
                return Err(error);
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn open_queued(&self) {
        loop {
            let next = {
                let mut state = self.openers.state.lock();
                let next = state.queue.pop_front();
                if next.is_none() {
                    state.running -= 1;
                }
                next
            };
            let Some(attached) = next else { return };
            if let Err(error) = attached.fs() {
                tracing::debug!(%error, "can't open a snapshot now");
            }
            attached.queued_no_more();
            self.send_again(&attached);
        }
    }

    /// Makes the requests come again that were left unanswered because the snapshot was not open.
    fn send_again(&self, attached: &Attached) {
        if !attached.was_left_unanswered() {
            return;
        }
        if let Some(in_flight) = self.shared.in_flight() {
            return in_flight.look_again(attached.kind());
        }
        if let Some(device) = self.devices.get(&attached.kind())
            && let Err(error) = resend(device)
        {
            tracing::warn!(%error, slot = %attached.slot(), "can't ask the kernel for waiting requests");
        }
    }
}
