//! The recordings that clients have asked for: each lives as long as its client stays.

use std::collections::HashMap;
use std::sync::Arc;

use inlay_fusefs::Metering;
use inlay_store::ids::SnapshotId;
use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::api::{BeginTrace, TraceBegun};
use super::error::DaemonError;
use super::service::Service;
use crate::trace::record::{
    EVENTS_DEFAULT, EVENTS_MAX, RECORDINGS_MAX, Recording, TraceEvents, Wanted,
};
use crate::trace::{Served, clock};

/// All of them, by their names.
#[derive(Debug, Default)]
pub(super) struct Traces {
    running: Mutex<HashMap<String, Running>>,
}

/// One of them.
#[derive(Debug)]
struct Running {
    recording: Arc<Recording>,
    metering: Metering,
    /// Reads that had been answered when it began.
    reads: u64,
    /// Done when it has ended.
    ended: CancellationToken,
}

impl Traces {
    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        !self.running.lock().is_empty()
    }
}

impl Service {
    /// Begins a recording. What is returned beside its name is done when it ends.
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

    /// Ends a recording and gives what was recorded.
    pub(super) async fn end_trace(&self, trace: &str) -> Result<TraceEvents, DaemonError> {
        let running = self.take_trace(trace);
        let running = running.ok_or_else(|| DaemonError::NoTrace(trace.to_owned()))?;
        let ended = clock::now();
        let Running { recording, metering, reads, .. } = running;
        let metered = metering.figures();
        let now = self.snapshots().server().reads().unwrap_or(reads);
        let served = Served {
            requests: metered.requests,
            time: u64::try_from(metered.busy.as_micros()).unwrap_or(u64::MAX),
            reads: now.saturating_sub(reads),
        };
        let events = spawn_blocking(move || recording.events(ended, served));
        events.await.map_err(|_| DaemonError::Panicked)
    }

    /// Ends a recording that nobody wants any more.
    pub(super) fn drop_trace(&self, trace: &str) {
        if self.take_trace(trace).is_some() {
            tracing::info!(trace, "a recording is dropped, because its client is gone");
        }
    }

    /// Ends all of them: the daemon is about to end.
    pub(super) fn drop_traces(&self) {
        let all: Vec<String> = self.traces().running.lock().keys().cloned().collect();
        for trace in &all {
            drop(self.take_trace(trace));
        }
    }

    /// Nothing more is recorded in it.
    fn take_trace(&self, trace: &str) -> Option<Running> {
        let running = self.traces().running.lock().remove(trace)?;
        self.snapshots().recorder().end(&running.recording);
        running.ended.cancel();
        self.something_ended();
        Some(running)
    }

    /// Has recordings show that something with a name happens now.
    pub(super) fn mark(&self, name: &'static str, detail: impl Fn() -> String) {
        self.snapshots().recorder().mark(name, detail);
    }
}
