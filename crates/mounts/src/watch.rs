//! Watches this process's mount table and reports each change.

use std::fs::File;
use std::io::{self, PipeWriter};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::Notify;

/// The file through which the kernel reports changes.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A thread that waits for changes of the mount table. Dropping this ends the thread.
#[derive(Debug)]
pub struct Watch {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts the watch: notifies `changed` after each change.
    pub fn start(changed: Arc<Notify>) -> io::Result<Self> {
        let table = File::open(MOUNTINFO)?;
        let (stopped, stop) = io::pipe()?;
        let thread = std::thread::Builder::new().name("inlay-watch".into()).spawn(move || {
            loop {
                // The kernel reports a change as urgent data of this file; dropping the watch
                // closes the pipe.
                let mut wanted =
                    [PollFd::new(&table, PollFlags::PRI), PollFd::new(&stopped, PollFlags::IN)];
                match poll(&mut wanted, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => {
                        tracing::warn!(%error, "can't watch the table of mounts");
                        return;
                    }
                }
                let [_, stopped] = wanted;
                if !stopped.revents().is_empty() {
                    return;
                }
                changed.notify_one();
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches the table of mounts panicked");
        }
    }
}
