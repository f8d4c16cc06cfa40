//! How long the threads that serve the kernel are busy with requests: measured only while somebody
//! wants to know, because two looks at the clock are a visible part of a short request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Measures requests while there is a [`Metering`]. Shared by all threads of a host.
#[derive(Debug, Default)]
pub struct RequestMeter {
    wanted: AtomicUsize,
    requests: AtomicU64,
    nanos: AtomicU64,
}

/// Requests that were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    /// How many.
    pub requests: u64,
    /// How long threads were busy with them. What a read waits for the content source afterwards is
    /// not counted: no thread does.
    pub busy: Duration,
}

/// Requests are measured until this is dropped.
#[derive(Debug)]
pub struct Metering {
    meter: Arc<RequestMeter>,
    before: Metered,
}

/// A request that is measured. It ends when this is dropped.
pub(crate) struct Timed<'m> {
    meter: &'m RequestMeter,
    began: Instant,
}

impl RequestMeter {
    /// Measures from now on.
    pub fn start(self: &Arc<Self>) -> Metering {
        self.wanted.fetch_add(1, Relaxed);
        Metering { meter: Arc::clone(self), before: self.all() }
    }

    /// A request begins. Nothing if nobody measures: one look at a number.
    pub(crate) fn request(&self) -> Option<Timed<'_>> {
        (self.wanted.load(Relaxed) > 0).then(|| Timed { meter: self, began: Instant::now() })
    }

    fn all(&self) -> Metered {
        let busy = Duration::from_nanos(self.nanos.load(Relaxed));
        Metered { requests: self.requests.load(Relaxed), busy }
    }
}

impl Metering {
    /// What was measured since it began.
    pub fn figures(&self) -> Metered {
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
    fn requests_are_measured_while_somebody_wants_to_know() {
        let meter = Arc::new(RequestMeter::default());
        assert!(meter.request().is_none());
        let one = meter.start();
        drop(meter.request());
        let two = meter.start();
        drop(meter.request());
        assert_eq!((one.figures().requests, two.figures().requests), (2, 1));
        assert!(one.figures().busy >= two.figures().busy);
        drop(one);
        assert!(meter.request().is_some());
        drop(two);
        assert!(meter.request().is_none());
    }
}
