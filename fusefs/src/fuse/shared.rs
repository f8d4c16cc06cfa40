//! State shared by all requests of a host: counters, meters, the log limiter, and the requests in
//! flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use fuser::Errno;

use crate::counters::{RequestCounters, count};
use crate::errno::errno;
use crate::error::FsError;
use crate::inflight::InFlight;
use crate::limiter::{Line, LogLimiter};
use crate::meter::RequestMeter;

/// State that replies on other threads need, too.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Arc<RequestCounters>,
    pub(crate) meter: Arc<RequestMeter>,
    limiter: LogLimiter,
    /// The process is about to exit: requests that would fail are left to the next server.
    leaving: AtomicBool,
    /// Requests in flight, on kernels that do not resend them.
    in_flight: Option<InFlight>,
}

impl Shared {
    pub(crate) fn new(counters: Arc<RequestCounters>, in_flight: Option<InFlight>) -> Self {
        let (meter, limiter) = Default::default();
        Self { counters, meter, limiter, leaving: AtomicBool::new(false), in_flight }
    }

    /// Returns the requests in flight, on kernels that do not resend them.
    pub(crate) fn in_flight(&self) -> Option<&InFlight> {
        self.in_flight.as_ref()
    }

    /// Leaves failing reads to the next server from now on.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Returns the errno of a failed request. Logs damage and store failures, rate-limited.
    pub(super) fn refuse(&self, error: &FsError) -> Errno {
        if error.is_failure() {
            count(&self.counters.failed);
            match self.limiter.line(Instant::now()) {
                Line::Write { held_back: 0 } => tracing::error!("I/O error: {error}"),
                Line::Write { held_back } => {
                    tracing::error!("I/O error: {error} (and {held_back} more before)");
                }
                Line::HoldBack => {}
            }
        }
        errno(error)
    }
}
