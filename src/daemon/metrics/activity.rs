//! Counts and times the daemon's operations, and counts their failures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use inlay_prefetch::{Histogram, HistogramCounts};
use parking_lot::Mutex;

use inlay_capture::Captured;

/// Counters since the daemon's start.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Activity {
    /// Mounts for users.
    pub(in crate::daemon) mounts: Timed,
    /// Mounts into sandboxes.
    pub(in crate::daemon) live_mounts: Timed,
    /// Attaching a snapshot, as part of mounts and sandbox starts.
    pub(in crate::daemon) attaches: Timed,
    /// Sandbox starts, from the request until the first program runs.
    pub(in crate::daemon) sandbox_starts: Timed,
    /// Snapshots of sandboxes.
    pub(in crate::daemon) captures: Timed,
    frozen: Histogram,
    read_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    requests: Mutex<BTreeMap<Request, u64>>,
    routes: Mutex<BTreeMap<String, HistogramCounts>>,
}

/// Durations and failures of one operation.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Timed {
    took: Histogram,
    failed: AtomicU64,
}

/// An operation in flight. Dropped before it is done, i.e. abandoned, it counts as failed.
pub(in crate::daemon) struct Timing<'a> {
    of: &'a Timed,
    began: Instant,
    done: bool,
}

/// Labels by which requests are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Request {
    pub(super) route: String,
    pub(super) method: &'static str,
    pub(super) status: u16,
}

impl Timed {
    /// Runs `work` and counts it.
    pub(in crate::daemon) async fn of<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let timing = Timing { of: self, began: Instant::now(), done: false };
        let done = work.await?;
        timing.done();
        Ok(done)
    }

    /// Durations of operations that succeeded.
    pub(super) fn took(&self) -> HistogramCounts {
        self.took.stats()
    }

    /// Number of operations that failed.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }
}

impl Timing<'_> {
    fn done(mut self) {
        self.done = true;
        self.of.took.take(self.began.elapsed());
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.of.failed.fetch_add(1, Relaxed);
        }
    }
}

impl Activity {
    /// Counts a snapshot that was taken.
    pub(in crate::daemon) fn captured(&self, captured: &Captured) {
        self.frozen.take(captured.frozen);
        self.read_bytes.fetch_add(captured.stats.bytes_read, Relaxed);
        self.stored_bytes.fetch_add(captured.stats.stored_bytes, Relaxed);
    }

    /// Counts an answered request. `route` is a pattern of the API, so cardinality is bounded.
    pub(in crate::daemon) fn answered(
        &self,
        route: &str,
        method: &'static str,
        status: u16,
        took: Duration,
    ) {
        let request = Request { route: route.to_owned(), method, status };
        *self.requests.lock().entry(request).or_default() += 1;
        let one = Histogram::default();
        one.take(took);
        self.routes.lock().entry(route.to_owned()).or_default().add(&one.stats());
    }

    pub(super) fn frozen(&self) -> HistogramCounts {
        self.frozen.stats()
    }

    /// Bytes that captures have read and stored.
    pub(super) fn capture_bytes(&self) -> (u64, u64) {
        (self.read_bytes.load(Relaxed), self.stored_bytes.load(Relaxed))
    }

    pub(super) fn requests(&self) -> BTreeMap<Request, u64> {
        self.requests.lock().clone()
    }

    pub(super) fn routes(&self) -> BTreeMap<String, HistogramCounts> {
        self.routes.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failed_or_cancelled_operations_record_no_duration() {
        let timed = Timed::default();
        timed.of(async { Ok::<_, ()>(()) }).await.unwrap();
        timed.of(async { Err::<(), _>(()) }).await.unwrap_err();
        let never = timed.of(std::future::pending::<Result<(), ()>>());
        tokio::time::timeout(Duration::from_millis(1), never).await.unwrap_err();
        assert_eq!((timed.took().count(), timed.failed()), (1, 2));
    }

    #[test]
    fn requests_are_counted_by_route_method_and_status() {
        let activity = Activity::default();
        for status in [200, 404, 200] {
            activity.answered("/v1/mounts", "GET", status, Duration::from_millis(3));
        }
        let counts: Vec<_> = activity.requests().into_iter().collect();
        let of = |status| Request { route: "/v1/mounts".into(), method: "GET", status };
        assert_eq!(counts, [(of(200), 2), (of(404), 1)]);
        assert_eq!(activity.routes()["/v1/mounts"].count(), 3);
    }
}
