//! Shares waits for a sandbox's end and for growth of its log: one connection or task polls on
//! behalf of any number of clients.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use inlay_sandbox::{Exit, LogMark, Monitor};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

use super::Sandbox;
use crate::daemon::error::DaemonError;

/// Polling interval of a log.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

type Ending = BoxFuture<'static, Result<Exit, Arc<DaemonError>>>;

/// Shared waits of one sandbox.
#[derive(Default)]
pub(super) struct Waits {
    ending: Mutex<Option<WeakShared<Ending>>>,
    pulse: Mutex<Weak<Looking>>,
}

/// A task that polls a log for as long as it has followers.
struct Looking {
    /// `None` until the first poll.
    seen: watch::Receiver<Option<LogObserved>>,
    _task: AbortOnDropHandle<()>,
}

/// Position of a log, or why it can't be determined.
type LogObserved = Result<LogMark, Arc<DaemonError>>;

/// Notifies of growth of a sandbox's log.
pub(super) struct Pulse {
    looking: Arc<Looking>,
}

impl Sandbox {
    /// Waits until the first process has ended.
    pub(super) async fn exit(&self) -> Result<Exit, DaemonError> {
        let ending = self.waits.ending(&self.monitor());
        ending.await.map_err(DaemonError::Shared)
    }

    /// Follows the growth of its log.
    pub(super) fn pulse(&self) -> Pulse {
        let mut pulse = self.waits.pulse.lock();
        let looking = pulse.upgrade().unwrap_or_else(|| {
            let looking = Looking::start(self);
            *pulse = Arc::downgrade(&looking);
            looking
        });
        Pulse { looking }
    }
}

impl Waits {
    fn ending(&self, monitor: &Monitor) -> Shared<Ending> {
        let mut ending = self.ending.lock();
        let known = ending.as_ref().and_then(WeakShared::upgrade);
        // A completed one holds an error, or an exit that is recorded by now.
        if let Some(known) = known.filter(|known| known.peek().is_none()) {
            return known;
        }
        let monitor = monitor.clone();
        let wait = async move { monitor.ended().await.map_err(|error| Arc::new(error.into())) };
        let shared = wait.boxed().shared();
        *ending = shared.downgrade();
        shared
    }
}

impl Looking {
    fn start(sandbox: &Sandbox) -> Arc<Self> {
        let layout = sandbox.layout().clone();
        let (to, seen) = watch::channel(None);
        let task = tokio::spawn(async move {
            loop {
                let layout = layout.clone();
                let looked = spawn_blocking(move || LogMark::of(&layout)).await;
                let mark: LogObserved = match looked {
                    Ok(mark) => mark.map_err(|error| Arc::new(error.into())),
                    Err(_) => Err(Arc::new(DaemonError::Panicked)),
                };
                let last = !mark.as_ref().is_ok_and(|mark| mark.open);
                to.send_if_modified(|seen| {
                    let is_same = match (&*seen, &mark) {
                        (Some(Ok(before)), Ok(now)) => before == now,
                        _ => false,
                    };
                    if !is_same {
                        *seen = Some(mark);
                    }
                    !is_same
                });
                if last {
                    return;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
        Arc::new(Self { seen, _task: AbortOnDropHandle::new(task) })
    }
}

impl Pulse {
    /// Returns the current end of the log. Everything before it is in the file.
    pub(super) async fn mark(&mut self) -> Result<Option<LogMark>, DaemonError> {
        let mut seen = self.looking.seen.clone();
        let known = seen.wait_for(Option::is_some).await.map(|seen| seen.clone());
        match known {
            Ok(Some(Ok(mark))) => Ok(Some(mark)),
            Ok(Some(Err(error))) => Err(DaemonError::Shared(error)),
            Ok(None) | Err(_) => Err(DaemonError::Panicked),
        }
    }

    /// Waits until the log's position differs from `mark`.
    pub(super) async fn changed(&self, mark: LogMark) {
        let mut seen = self.looking.seen.clone();
        let is_other = |seen: &Option<LogObserved>| !matches!(seen, Some(Ok(now)) if *now == mark);
        // An error means that the task has ended; the next call of `mark` reports it.
        let _ = seen.wait_for(is_other).await;
    }
}
