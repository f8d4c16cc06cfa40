//! Measures how long FUSE threads are busy with requests. Only enabled on demand, because two clock
//! reads are a noticeable part of a short request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Measures requests while a [`Metering`] exists. Shared by all threads of a host.
#[derive(Debug, Default)]
pub struct RequestMeter {
    wanted: AtomicUsize,
    requests: AtomicU64,
    nanos: AtomicU64,
}

/// Measured requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    /// Number of requests.
    pub requests: u64,
    /// Time that threads were busy with them. Excludes the time that a read then waits for the
    /// content source, since no thread is busy with it.
    pub busy: Duration,
}

/// Enables measuring until dropped.
#[derive(Debug)]
pub struct Metering {
    meter: Arc<RequestMeter>,
    before: Metered,
}

/// A request being measured; ends on drop.
pub(crate) struct Timed<'m> {
    meter: &'m RequestMeter,
    began: Instant,
}

impl RequestMeter {
    /// Starts measuring.
    pub fn start(self: &Arc<Self>) -> Metering {
        self.wanted.fetch_add(1, Relaxed);
        Metering { meter: Arc::clone(self), before: self.all() }
    }

    /// Starts measuring a request. Returns `None` if measuring is disabled; costs one atomic load.
    pub(crate) fn request(&self) -> Option<Timed<'_>> {
        (self.wanted.load(Relaxed) > 0).then(|| Timed { meter: self, began: Instant::now() })
    }

    fn all(&self) -> Metered {
        let busy = Duration::from_nanos(self.nanos.load(Relaxed));
        Metered { requests: self.requests.load(Relaxed), busy }
    }
}

impl Metering {
    /// Returns the requests measured since `start`.
    pub fn stats(&self) -> Metered {
        let now = self.meter.all();
        Metered {
            requests: now.requests.saturating_sub(self.before.requests),
            busy: now.busy.saturating_sub(self.before.busy),
        }
    }
}

impl Drop for Metering {
    fn drop(&mut self) {
        self.meter.wanted.fetch_sub(1, Relaxed);
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.meter.nanos.fetch_add(nanos, Relaxed);
        self.meter.requests.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_measured_only_while_a_measurement_runs() {
        let meter = Arc::new(RequestMeter::default());
        assert!(meter.request().is_none());
        let one = meter.start();
        drop(meter.request());
        let two = meter.start();
        drop(meter.request());
        assert_eq!((one.stats().requests, two.stats().requests), (2, 1));
        assert!(one.stats().busy >= two.stats().busy);
        drop(one);
        assert!(meter.request().is_some());
        drop(two);
        assert!(meter.request().is_none());
    }
}
