//! Traces recorded for clients, each for as long as its client is connected.

use std::collections::HashMap;
use std::sync::Arc;

use inlay_fusefs::Metering;
use inlay_store::ids::SnapshotId;
use inlay_trace::record::{
    EVENTS_DEFAULT, EVENTS_MAX, RECORDINGS_MAX, Recording, TraceEvents, Wanted,
};
use inlay_trace::{Served, clock};
use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::api::{BeginTrace, TraceBegun};
use super::error::DaemonError;
use super::service::Service;

/// Traces in progress, by id.
#[derive(Debug, Default)]
pub(super) struct Traces {
    running: Mutex<HashMap<String, Running>>,
}

/// A trace in progress.
#[derive(Debug)]
struct Running {
    recording: Arc<Recording>,
    metering: Metering,
    /// Reads answered before the trace began.
    reads: u64,
    /// Cancelled when the trace ends.
    ended: CancellationToken,
}

impl Traces {
    /// Returns whether any trace is in progress.
    pub(super) fn any(&self) -> bool {
        !self.running.lock().is_empty()
    }
}

impl Service {
    /// Begins a trace. The returned token is cancelled when it ends.
    pub(super) fn begin_trace(
        &self,
        request: &BeginTrace,
    ) -> Result<(TraceBegun, CancellationToken), DaemonError> {
        let wrong = |id: &String| DaemonError::Request(format!("{id:?} is no snapshot's id"));
        let snapshots = request.snapshots.iter();
        let snapshots = snapshots.map(|id| id.parse::<SnapshotId>().map_err(|_| wrong(id)));
        let events = request.events.unwrap_or(EVENTS_DEFAULT);
        if !(1..=EVENTS_MAX).contains(&events) {
            let text = format!("a trace keeps 1 to {EVENTS_MAX} events, not {events}");
            return Err(DaemonError::Request(text));
        }
        let wanted = Wanted { snapshots: snapshots.collect::<Result<_, _>>()?, events };
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty())
            .map_err(DaemonError::io("read", "/dev/urandom".as_ref()))?;
        let trace = hex::encode(random);
        let (metering, reads) = self.snapshots().server().metering()?;
        let recording = self.snapshots().recorder().begin(wanted);
        let recording = recording.ok_or(DaemonError::Traces(RECORDINGS_MAX))?;
        let (began_ns, ended) = (recording.began_ns(), CancellationToken::new());
        let running = Running { recording, metering, reads, ended: ended.clone() };
        self.traces().running.lock().insert(trace.clone(), running);
        Ok((TraceBegun { trace, began_ns, events }, ended))
    }

    /// Ends a trace and returns its events.
    pub(super) async fn end_trace(&self, trace: &str) -> Result<TraceEvents, DaemonError> {
        let running = self.take_trace(trace);
        let running = running.ok_or_else(|| DaemonError::NoTrace(trace.to_owned()))?;
        let ended = clock::now();
        let Running { recording, metering, reads, .. } = running;
        let metered = metering.stats();
        let now = self.snapshots().server().reads().unwrap_or(reads);
        let served = Served {
            requests: metered.requests,
            time: u64::try_from(metered.busy.as_micros()).unwrap_or(u64::MAX),
            reads: now.saturating_sub(reads),
        };
        let events = spawn_blocking(move || recording.events(ended, served));
        events.await.map_err(|_| DaemonError::Panicked)
    }

    /// Discards a trace after its client is gone.
    pub(super) fn drop_trace(&self, trace: &str) {
        if self.take_trace(trace).is_some() {
            tracing::info!(trace, "dropping a recording: its client disconnected");
        }
    }

    /// Discards all traces when the daemon is stopping.
    pub(super) fn drop_traces(&self) {
        let all: Vec<String> = self.traces().running.lock().keys().cloned().collect();
        for trace in &all {
            drop(self.take_trace(trace));
        }
    }

    /// Stops recording a trace and removes it.
    fn take_trace(&self, trace: &str) -> Option<Running> {
        let running = self.traces().running.lock().remove(trace)?;
        self.snapshots().recorder().end(&running.recording);
        running.ended.cancel();
        self.lifecycle().something_ended();
        Some(running)
    }

    /// Records an event in all traces.
    pub(super) fn mark(&self, name: &'static str, detail: impl Fn() -> String) {
        self.snapshots().recorder().mark(name, detail);
    }
}
