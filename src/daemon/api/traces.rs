//! Recordings of what is read and fetched.

use serde::{Deserialize, Serialize};

/// The recordings: begin one.
pub const TRACES: &str = "/v1/traces";
/// Ends a recording and gives what was recorded.
pub const TRACE_END: &str = "/v1/traces/{trace}/end";

/// Begin to record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BeginTrace {
    /// The ids of the snapshots whose reads are recorded; all, if there are none.
    #[serde(default)]
    pub snapshots: Vec<String>,
    /// How many events are kept, 400,000 at most [default: 200,000].
    #[serde(default)]
    pub events: Option<usize>,
}

/// It is being recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TraceBegun {
    /// Names the recording.
    pub trace: String,
    /// When it began: nanoseconds of the host's monotonic clock.
    pub began_ns: u64,
    /// How many events are kept.
    pub events: usize,
}

/// Where the recording with this name is ended.
pub fn trace_end(trace: &str) -> String {
    TRACE_END.replace("{trace}", trace)
}
