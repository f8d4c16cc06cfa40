//! Wire types for traces of reads and fetches.

use serde::{Deserialize, Serialize};

/// Traces: begin one.
pub const TRACES: &str = "/v1/traces";
/// Ends a trace and returns its events.
pub const TRACE_END: &str = "/v1/traces/{trace}/end";

/// Begins a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BeginTrace {
    /// Ids of the snapshots to trace. Empty: all.
    #[serde(default)]
    pub snapshots: Vec<String>,
    /// Number of events to keep, at most 400,000 [default: 200,000].
    #[serde(default)]
    pub events: Option<usize>,
}

/// A trace that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TraceBegun {
    /// Id of the trace.
    pub trace: String,
    /// Start time, in nanoseconds of the host's monotonic clock.
    pub began_ns: u64,
    /// Number of events kept.
    pub events: usize,
}

/// Returns the path that ends `trace`.
pub fn trace_end(trace: &str) -> String {
    TRACE_END.replace("{trace}", trace)
}
