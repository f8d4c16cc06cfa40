//! Defines the events of one daemon's recording, as returned by its API.

use serde::{Deserialize, Serialize};

use crate::model::{FetchRow, FileRow, SegmentKind, Served, SnapshotInfo, TouchRow};

/// Events of a recording. Times are microseconds since its start. Positions count from 0; unknown
/// times and positions are -1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TraceEvents {
    /// Start of the recording: nanoseconds of the host's monotonic clock.
    pub began_ns: u64,
    /// Duration of the recording.
    pub duration: u64,
    /// Number of events dropped because the buffer was full.
    pub dropped: u64,
    /// Snapshots that were read.
    pub snapshots: Vec<SnapshotInfo>,
    /// Files that rows refer to by position: path, position of the snapshot, size in bytes.
    pub files: Vec<FileRow>,
    /// First touches of files, and reads that waited: `at`, `wait`, `file`, `tier` (0 index, 1 cache,
    /// 2 in-flight, 3 store, 4 kernel), `offset`, `bytes`, `fetch`, `first` (1 for a first touch).
    #[schema(value_type = Vec<Vec<i64>>)]
    pub touches: Vec<TouchRow>,
    /// Requests to the store: `queued`, `sent`, `first_byte`, `received`, `ready`, `class` (0 demand,
    /// 1 read-ahead, 2 directory, 3 profile, 4 rest, 5 index, 6 profile record), `snapshot`, `groups`,
    /// `bytes`, `outcome` (0 ok, 1 failed, 2 cancelled), `file`.
    #[schema(value_type = Vec<Vec<i64>>)]
    pub fetches: Vec<FetchRow>,
    /// Named points in time.
    pub marks: Vec<EventMark>,
    /// Steps with known start and end.
    pub spans: Vec<EventSpan>,
    /// The kernel's requests to the daemon.
    pub served: Served,
}

/// A named point in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventMark {
    /// Microseconds since the start of the recording; negative if earlier.
    pub at: i64,
    /// Name of the event.
    pub name: String,
    /// Subject: a sandbox id, a mount point or a snapshot.
    pub detail: String,
}

/// A step with known start and end, in microseconds since the start of the recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventSpan {
    /// Start.
    pub from: i64,
    /// End.
    pub to: i64,
    /// Kind of step: `attach` (mounting a snapshot) or `runtime` (creating a sandbox and starting its
    /// program).
    #[schema(value_type = String)]
    pub kind: SegmentKind,
    /// Subject: for `attach`, the reference of the snapshot.
    pub what: String,
}
