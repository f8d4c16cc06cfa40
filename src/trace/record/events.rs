//! What a recording comes to: the events of one daemon, as its API gives them.

use serde::{Deserialize, Serialize};

use crate::trace::model::{FetchRow, FileRow, SegmentKind, Served, SnapshotInfo, TouchRow};

/// What was recorded. Times are microseconds since the recording's beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TraceEvents {
    /// When that was: nanoseconds of the host's monotonic clock.
    pub began_ns: u64,
    /// How long it took.
    pub duration: u64,
    /// Events that found the buffer full.
    pub dropped: u64,
    /// Snapshots that were read.
    pub snapshots: Vec<SnapshotInfo>,
    /// Files that rows name: path, place of the snapshot, size.
    pub files: Vec<FileRow>,
    /// First touches of files, and reads that waited: `at`, `wait`, `file`, `tier` (0 index, 1 cache,
    /// 2 in-flight, 3 store, 4 kernel), `offset`, `bytes`, `fetch`, `first`.
    #[schema(value_type = Vec<Vec<i64>>)]
    pub touches: Vec<TouchRow>,
    /// Requests to the store: `queued`, `sent`, `first_byte`, `received`, `ready`, `class` (0 demand,
    /// 1 read-ahead, 2 directory, 3 profile, 4 rest, 5 index, 6 profile record), `snapshot`, `groups`,
    /// `bytes`, `outcome` (0 ok, 1 failed, 2 cancelled), `file`. What is not known is -1.
    #[schema(value_type = Vec<Vec<i64>>)]
    pub fetches: Vec<FetchRow>,
    /// Moments that have a name.
    pub marks: Vec<EventMark>,
    /// Stretches of time that are known.
    pub spans: Vec<EventSpan>,
    /// What the kernel asked for.
    pub served: Served,
}

/// A moment with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventMark {
    /// When.
    pub at: i64,
    /// Its name.
    pub name: String,
    /// What it was about: a sandbox's id, a mount point, a snapshot.
    pub detail: String,
}

/// A stretch of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventSpan {
    /// From when,
    pub from: i64,
    /// until when.
    pub to: i64,
    /// What was done: `attach` or `runtime`.
    #[schema(value_type = String)]
    pub kind: SegmentKind,
    /// What it was about.
    pub what: String,
}
