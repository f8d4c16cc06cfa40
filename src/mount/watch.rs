//! Watches the table of mounts until one is gone from it.

use std::fs::File;
use std::io::{self, PipeWriter};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::mountinfo::MOUNTINFO;

/// A thread that waits for changes of the table. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Watch {
    gone: oneshot::Receiver<()>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches until `is_mounted`, asked whenever the table changes, says no.
    pub(crate) fn start(is_mounted: impl Fn() -> bool + Send + 'static) -> io::Result<Self> {
        let table = File::open(MOUNTINFO)?;
        let (stopped, stop) = io::pipe()?;
        let (sender, gone) = oneshot::channel();
        let thread = std::thread::Builder::new().name("inlay-watch".into()).spawn(move || {
            while is_mounted() {
                // The kernel reports a change of the table as urgent data of this file; the pipe
                // is closed by who drops the watch.
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
            }
            // Nobody waits any more: fine.
            let _ = sender.send(());
        })?;
        Ok(Self { gone, stop: Some(stop), thread: Some(thread) })
    }

    /// Waits until it is gone. Never returns if the table can't be watched.
    pub(crate) async fn gone(&mut self) {
        if (&mut self.gone).await.is_err() {
            std::future::pending::<()>().await;
        }
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
