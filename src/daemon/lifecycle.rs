//! The daemon's lifecycle: requests in flight, idleness, and the decision to stop.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;

/// Deadline for requests in flight when the daemon stops.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

/// Admits requests that may leave mounts or processes behind, and stops admitting them when the
/// daemon stops. Clones share state.
#[derive(Clone)]
pub(super) struct Lifecycle {
    inner: Arc<LifecycleInner>,
}

struct LifecycleInner {
    load: Mutex<Load>,
    /// Wakes the main loop: something may have ended.
    changed: Arc<Notify>,
    /// Wakes those who wait until no request is in flight.
    settled: Notify,
    /// Cancelled when the daemon was asked to stop.
    stop: CancellationToken,
}

/// Counts of requests.
#[derive(Debug, Clone, Copy)]
struct Load {
    in_flight: usize,
    gate: Gate,
    /// Requests that may stop the daemon. While there are any, no others are admitted.
    closings: usize,
    /// Requests completed, including those of earlier daemons.
    done: u64,
}

/// Whether further requests are admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
}

/// A request in flight; the daemon does not stop before it is dropped.
pub(super) struct InFlight(Lifecycle);

impl Drop for InFlight {
    fn drop(&mut self) {
        let inner = &self.0.inner;
        let left = {
            let mut load = inner.load.lock();
            load.in_flight -= 1;
            load.done += 1;
            load.in_flight
        };
        if left == 0 {
            inner.settled.notify_waiters();
        }
        inner.changed.notify_one();
    }
}

/// A request that may stop the daemon. While it lives, no request that may leave something behind
/// is admitted; dropping it, because it failed or its caller is gone, admits them again.
pub(super) struct Closing(Lifecycle);

impl Closing {
    /// Waits until no request is in flight.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Busy`] if requests are still in flight after 30 seconds.
    pub(super) async fn settle(&self) -> Result<(), DaemonError> {
        let inner = &self.0.inner;
        let settled = async {
            loop {
                // Created before the check, so that a wake-up in between is not lost.
                let notified = inner.settled.notified();
                if inner.load.lock().in_flight == 0 {
                    return;
                }
                notified.await;
            }
        };
        timeout(SETTLE_WITHIN, settled).await.map_err(|_| DaemonError::Busy)
    }

    /// Commits to stopping: no more requests are admitted.
    pub(super) fn done(self) {
        self.0.inner.load.lock().gate = Gate::Closed;
        self.0.inner.stop.cancel();
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.inner.load.lock().closings -= 1;
        // Work that waited for this may proceed, e.g. the exit of an idle daemon.
        self.0.something_ended();
    }
}

impl Lifecycle {
    /// Creates the lifecycle of a daemon that has taken over `adopted` mounts and sandboxes.
    /// Notifies `changed` whenever the daemon may have become idle.
    pub(super) fn new(changed: Arc<Notify>, adopted: usize) -> Self {
        let done = u64::try_from(adopted).unwrap_or(u64::MAX);
        let load = Load { in_flight: 0, gate: Gate::Open, closings: 0, done };
        let (settled, stop) = (Notify::new(), CancellationToken::new());
        Self { inner: Arc::new(LifecycleInner { load: Mutex::new(load), changed, settled, stop }) }
    }

    /// Admits a request.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Ending`] if the daemon is stopping, or a request that may stop it is running.
    pub(super) fn admit(&self) -> Result<InFlight, DaemonError> {
        let mut load = self.inner.load.lock();
        if load.gate == Gate::Closed || load.closings > 0 {
            return Err(DaemonError::Ending);
        }
        load.in_flight += 1;
        Ok(InFlight(self.clone()))
    }

    /// Begins a request that may stop the daemon.
    pub(super) fn close(&self) -> Closing {
        self.inner.load.lock().closings += 1;
        Closing(self.clone())
    }

    /// Stops admitting requests if none is in flight and `is_idle` holds. Returns whether it did.
    pub(super) fn close_if(&self, is_idle: impl FnOnce() -> bool) -> bool {
        let mut load = self.inner.load.lock();
        let idle = load.in_flight == 0 && is_idle();
        if idle {
            load.gate = Gate::Closed;
        }
        idle
    }

    /// Whether this daemon has not served any request yet.
    pub(super) fn is_new(&self) -> bool {
        let load = *self.inner.load.lock();
        load.done == 0 && load.in_flight == 0
    }

    /// Wakes the main loop, which checks whether the daemon has become idle.
    pub(super) fn something_ended(&self) {
        self.inner.changed.notify_one();
    }

    /// Cancelled when the daemon was asked to stop.
    pub(super) fn stop_token(&self) -> &CancellationToken {
        &self.inner.stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifecycle() -> Lifecycle {
        Lifecycle::new(Arc::default(), 0)
    }

    #[tokio::test]
    async fn a_stop_waits_for_requests_in_flight_and_admits_no_others() {
        let lifecycle = lifecycle();
        let request = lifecycle.admit().unwrap();
        let closing = lifecycle.close();
        assert!(matches!(lifecycle.admit(), Err(DaemonError::Ending)));
        assert!(timeout(Duration::from_millis(10), closing.settle()).await.is_err());
        let settled = tokio::spawn(async move { closing.settle().await.map(|()| closing) });
        tokio::task::yield_now().await;
        drop(request);
        // Dropped without a decision to stop: requests are admitted again.
        drop(settled.await.unwrap().unwrap());
        drop(lifecycle.admit().unwrap());
        lifecycle.close().done();
        assert!(lifecycle.stop_token().is_cancelled());
        assert!(matches!(lifecycle.admit(), Err(DaemonError::Ending)));
    }

    #[test]
    fn only_an_idle_daemon_closes() {
        let lifecycle = lifecycle();
        assert!(lifecycle.is_new());
        let request = lifecycle.admit().unwrap();
        assert!(!lifecycle.close_if(|| true) && !lifecycle.is_new());
        drop(request);
        assert!(!lifecycle.close_if(|| false) && !lifecycle.is_new());
        drop(lifecycle.admit().unwrap());
        assert!(lifecycle.close_if(|| true));
        assert!(matches!(lifecycle.admit(), Err(DaemonError::Ending)));
    }
}
