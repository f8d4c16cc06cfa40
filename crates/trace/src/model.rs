//! Defines the trace file, one JSON object. All times are whole microseconds since the start began.
//!
//! Touches and fetches, which are numerous, are rows of numbers, so that 50,000 of them take a few
//! megabytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::TraceError;
use super::path;

/// Value of the field `format`.
pub const FORMAT: &str = "inlay-trace";
/// The version written, and the only one accepted.
pub const VERSION: u64 = 1;
/// Latest valid time, about nine years; a start has no later one.
const MICROS_MAX: i64 = 1 << 48;

/// A recorded start or any other recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Always [`FORMAT`].
    pub format: String,
    /// Always [`VERSION`].
    pub version: u64,
    /// Title for display: the started command.
    pub title: String,
    /// Arguments of the recording command.
    pub command: Vec<String>,
    /// Time of the recording, in UTC.
    pub recorded: String,
    /// Host of the recording.
    pub host: HostInfo,
    /// Version of inlay.
    pub inlay: String,
    /// Snapshots that were read.
    pub snapshots: Vec<SnapshotInfo>,
    /// Duration of the recording.
    pub duration: u64,
    /// Time of readiness, if reached.
    pub ready: Option<u64>,
    /// Condition for readiness: `output /PATTERN/`, `port N`, `exit 0`.
    pub ready_by: Option<String>,
    /// Events dropped because the buffer was full.
    pub dropped: u64,
    /// Marks in order of time.
    pub marks: Vec<Mark>,
    /// Files that rows refer to.
    pub files: Vec<FileRow>,
    /// First touches of files, and reads that waited.
    pub touches: Rows<TouchRow>,
    /// Requests to the store.
    pub fetches: Rows<FetchRow>,
    /// The kernel's requests to the daemon.
    pub served: Served,
    /// Critical path: the causes of waiting from the beginning until readiness, without gaps.
    pub path: Vec<Segment>,
    /// Sums.
    pub totals: Totals,
}

/// Host of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Kernel release.
    pub kernel: String,
    /// Number of CPUs.
    pub cores: usize,
}

/// A snapshot that was read during a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotInfo {
    /// Snapshot id.
    pub id: String,
    /// First name by which it was mounted; null if it was mounted only by id.
    pub name: Option<String>,
    /// Address of its store.
    pub store: String,
    /// Number of groups.
    pub groups: u64,
    /// Number of inodes: files, directories and others.
    pub files: u64,
    /// Decompressed size of its groups, in bytes.
    pub size: u64,
}

/// A named point in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Time.
    pub at: u64,
    /// Name.
    pub name: String,
    /// Subject.
    pub detail: String,
}

/// A file: path, position of its snapshot among the trace's snapshots (from 0), size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileRow(pub String, pub u32, pub u64);

/// Rows with the names of their columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows<T> {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<T>,
}

/// Names of a row type's columns.
pub(super) trait Columns {
    /// Names in order.
    const COLUMNS: &'static [&'static str];
}

#[expect(private_bounds, reason = "what columns a row has is said here alone")]
impl<T: Columns> Rows<T> {
    /// Wraps the rows.
    pub(super) fn of(rows: Vec<T>) -> Self {
        Self { columns: T::COLUMNS.iter().map(|name| (*name).to_owned()).collect(), rows }
    }

    fn check(&self, what: &str) -> Result<(), TraceError> {
        if self.columns.iter().map(String::as_str).eq(T::COLUMNS.iter().copied()) {
            return Ok(());
        }
        let wrong = format!("the columns of {what} are {:?}, not {:?}", self.columns, T::COLUMNS);
        Err(TraceError::Wrong(wrong))
    }
}

/// Origin of the bytes of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The snapshot's index.
    Index,
    /// This host: its cache, or recently fetched data in memory.
    Cache,
    /// The store, with the request already in flight when the read began.
    InFlight,
    /// The store.
    Store,
    /// The kernel, which reads the cached file directly and unobserved.
    Kernel,
}

impl Tier {
    /// All tiers, ordered by code.
    pub const ALL: [Self; 5] =
        [Self::Index, Self::Cache, Self::InFlight, Self::Store, Self::Kernel];

    /// Name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Cache => "cache",
            Self::InFlight => "in-flight",
            Self::Store => "store",
            Self::Kernel => "kernel",
        }
    }

    /// Code in rows.
    pub fn code(self) -> i64 {
        self as i64
    }
}

/// Purpose of a fetch, with its urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FetchClass {
    /// A reader waits for it.
    Demand,
    /// Read-ahead of a reader.
    ReadAhead,
    /// Prefetch of a mounted directory.
    Directory,
    /// Prefetch by profile.
    Profile,
    /// Prefetch of the rest of an image.
    Rest,
    /// An index.
    Index,
    /// A profile.
    ProfileRecord,
}

impl FetchClass {
    /// All classes, ordered by code.
    pub const ALL: [Self; 7] = [
        Self::Demand,
        Self::ReadAhead,
        Self::Directory,
        Self::Profile,
        Self::Rest,
        Self::Index,
        Self::ProfileRecord,
    ];

    /// Name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::ReadAhead => "read-ahead",
            Self::Directory => "directory",
            Self::Profile => "profile",
            Self::Rest => "rest",
            Self::Index => "index",
            Self::ProfileRecord => "profile-record",
        }
    }

    /// Code in rows.
    pub fn code(self) -> i64 {
        self as i64
    }
}

/// Outcome of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FetchOutcome {
    /// Complete, or still in flight at the end of the recording; then `ready` is unknown.
    Ok,
    /// The store failed or returned corrupt data.
    Failed,
    /// Cancelled because no reader needed it any more.
    Cancelled,
}

impl FetchOutcome {
    /// All outcomes, ordered by code.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Cancelled];

    /// Code in rows.
    pub fn code(self) -> i64 {
        self as i64
    }
}

fn coded<T: Copy>(all: &[T], code: i64, what: &str) -> Result<T, TraceError> {
    let found = usize::try_from(code).ok().and_then(|code| all.get(code));
    found.copied().ok_or_else(|| TraceError::Wrong(format!("there is no {what} {code}")))
}

/// A first touch of a file, or a read that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[i64; 8]", into = "[i64; 8]")]
pub struct TouchRow {
    /// Time of the kernel's request.
    pub at: i64,
    /// Time until the response.
    pub wait: i64,
    /// Position of the file in the trace; -1 if unknown.
    pub file: i64,
    /// Origin of the bytes.
    pub tier: Tier,
    /// Offset in the file, in bytes.
    pub offset: i64,
    /// Length in bytes.
    pub bytes: i64,
    /// Position of the fetch that it waited for; -1 if none.
    pub fetch: i64,
    /// Whether this is the first touch of the file.
    pub first: bool,
}

impl Columns for TouchRow {
    const COLUMNS: &'static [&'static str] =
        &["at", "wait", "file", "tier", "offset", "bytes", "fetch", "first"];
}

impl TouchRow {
    /// Time of the response.
    pub fn end(&self) -> i64 {
        self.at.saturating_add(self.wait)
    }
}

impl From<TouchRow> for [i64; 8] {
    fn from(row: TouchRow) -> Self {
        let TouchRow { at, wait, file, tier, offset, bytes, fetch, first } = row;
        [at, wait, file, tier.code(), offset, bytes, fetch, i64::from(first)]
    }
}

impl TryFrom<[i64; 8]> for TouchRow {
    type Error = TraceError;

    fn try_from(row: [i64; 8]) -> Result<Self, TraceError> {
        let [at, wait, file, tier, offset, bytes, fetch, first] = row;
        let tier = coded(&Tier::ALL, tier, "tier")?;
        Ok(Self { at, wait, file, tier, offset, bytes, fetch, first: first != 0 })
    }
}

/// A request to the store. Unknown times are -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[i64; 11]", into = "[i64; 11]")]
pub struct FetchRow {
    /// Time when it was first needed.
    pub queued: i64,
    /// Time when the request was sent.
    pub sent: i64,
    /// Time of the response's first byte.
    pub first_byte: i64,
    /// Time of the response's last byte.
    pub received: i64,
    /// Time when readers could use the data.
    pub ready: i64,
    /// Purpose and urgency.
    pub class: FetchClass,
    /// Position of the snapshot in the trace; -1 if unknown.
    pub snapshot: i64,
    /// Number of groups.
    pub groups: i64,
    /// Stored bytes requested.
    pub bytes: i64,
    /// Outcome.
    pub outcome: FetchOutcome,
    /// Position of a file with bytes in it; -1 if unknown.
    pub file: i64,
}

impl Columns for FetchRow {
    const COLUMNS: &'static [&'static str] = &[
        "queued",
        "sent",
        "first_byte",
        "received",
        "ready",
        "class",
        "snapshot",
        "groups",
        "bytes",
        "outcome",
        "file",
    ];
}

impl FetchRow {
    /// Latest known time.
    pub fn end(&self) -> i64 {
        self.sent.max(self.first_byte).max(self.received).max(self.ready)
    }
}

impl From<FetchRow> for [i64; 11] {
    fn from(row: FetchRow) -> Self {
        [
            row.queued,
            row.sent,
            row.first_byte,
            row.received,
            row.ready,
            row.class.code(),
            row.snapshot,
            row.groups,
            row.bytes,
            row.outcome.code(),
            row.file,
        ]
    }
}

impl TryFrom<[i64; 11]> for FetchRow {
    type Error = TraceError;

    fn try_from(row: [i64; 11]) -> Result<Self, TraceError> {
        let [
            queued,
            sent,
            first_byte,
            received,
            ready,
            class,
            snapshot,
            groups,
            bytes,
            outcome,
            file,
        ] = row;
        Ok(Self {
            queued,
            sent,
            first_byte,
            received,
            ready,
            class: coded(&FetchClass::ALL, class, "class of fetches")?,
            snapshot,
            groups,
            bytes,
            outcome: coded(&FetchOutcome::ALL, outcome, "outcome of fetches")?,
            file,
        })
    }
}

/// The kernel's requests to the daemon during a recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Served {
    /// Number of requests.
    pub requests: u64,
    /// Busy time of the daemon's threads with them, in microseconds, summed over threads.
    pub time: u64,
    /// Number of these requests that read files.
    pub reads: u64,
}

/// Cause of a segment of the critical path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentKind {
    /// Attaching the snapshot: its record, its index, the mount.
    Attach,
    /// Creating the sandbox and starting its first program.
    Runtime,
    /// A reader waited for the store.
    Store,
    /// A reader waited for a request already in flight.
    InFlight,
    /// The daemon served a read from this host.
    Served,
    /// The program itself ran, or the kernel.
    Running,
}

impl SegmentKind {
    /// All kinds in display order.
    pub const ALL: [Self; 6] =
        [Self::Attach, Self::Runtime, Self::Store, Self::InFlight, Self::Served, Self::Running];

    /// Name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Runtime => "runtime",
            Self::Store => "store",
            Self::InFlight => "in-flight",
            Self::Served => "served",
            Self::Running => "running",
        }
    }
}

/// A segment of the critical path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Start time.
    pub from: u64,
    /// End time.
    pub to: u64,
    /// Cause.
    pub kind: SegmentKind,
    /// Position of the touch that waited; -1 if none.
    pub touch: i64,
    /// Position of the fetch it waited for; -1 if none.
    pub fetch: i64,
    /// Description for display.
    pub what: String,
}

/// Sums over a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Microseconds of the critical path by kind.
    pub path: BTreeMap<String, u64>,
    /// Touches and their waiting time by tier.
    pub touches: BTreeMap<String, TierTotals>,
    /// Fetches and their bytes by class.
    pub fetches: BTreeMap<String, ClassTotals>,
}

/// Sums over the touches of one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierTotals {
    /// Number of first touches of files.
    pub first: u64,
    /// Number of later reads that waited.
    pub later: u64,
    /// Sum of the individual waiting times, in microseconds.
    pub wait: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Sums over the fetches of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassTotals {
    /// Number of requests.
    pub requests: u64,
    /// Stored bytes requested.
    pub bytes: u64,
    /// Number of failures.
    pub failed: u64,
}

/// Fields common to all versions.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    format: serde_json::Value,
    #[serde(default)]
    version: serde_json::Value,
}

impl Trace {
    /// Parses an untrusted trace.
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceError> {
        let head: Head = serde_json::from_slice(bytes)?;
        if head.format != FORMAT {
            return Err(TraceError::Format(head.format.as_str().unwrap_or_default().to_owned()));
        }
        match head.version.as_u64() {
            Some(VERSION) => {}
            Some(version) => return Err(TraceError::Version(version)),
            None => return Err(TraceError::Wrong("it has no version".to_owned())),
        }
        let trace: Self = serde_json::from_slice(bytes)?;
        trace.check()?;
        Ok(trace)
    }

    /// Serializes the trace.
    pub fn to_json(&self) -> Result<String, TraceError> {
        Ok(serde_json::to_string(self)?)
    }

    /// End of the critical path: readiness, or the end of the recording.
    pub fn path_end(&self) -> u64 {
        self.ready.unwrap_or(self.duration)
    }

    /// Returns the file at a position of the trace.
    pub(super) fn file(&self, place: i64) -> Option<&FileRow> {
        usize::try_from(place).ok().and_then(|place| self.files.get(place))
    }

    /// Returns the fetch at a position of the trace.
    pub(super) fn fetch(&self, place: i64) -> Option<&FetchRow> {
        usize::try_from(place).ok().and_then(|place| self.fetches.rows.get(place))
    }

    /// Returns the touch at a position of the trace.
    pub(super) fn touch(&self, place: i64) -> Option<&TouchRow> {
        usize::try_from(place).ok().and_then(|place| self.touches.rows.get(place))
    }

    /// Checks the invariants on which viewers rely: positions exist, times are valid, the path has
    /// no gap.
    fn check(&self) -> Result<(), TraceError> {
        self.touches.check("touches")?;
        self.fetches.check("fetches")?;
        let wrong = |what: String| Err(TraceError::Wrong(what));
        let late = |at: u64| i64::try_from(at).map_or(true, |at| at > MICROS_MAX);
        if late(self.duration) || self.ready.is_some_and(|ready| ready > self.duration) {
            return wrong("it was ready after its end, or its end is no time".to_owned());
        }
        if self.marks.iter().any(|mark| late(mark.at)) {
            return wrong("a mark has no time".to_owned());
        }
        let is_time = |at: i64| (-MICROS_MAX..=MICROS_MAX).contains(&at);
        let is_in = |place: i64, len: usize| {
            place == -1 || usize::try_from(place).is_ok_and(|place| place < len)
        };
        let (files, fetches) = (self.files.len(), self.fetches.rows.len());
        let snapshots = self.snapshots.len();
        if self.files.iter().any(|file| file.1 as usize >= snapshots) {
            return wrong("a file is of a snapshot that it does not have".to_owned());
        }
        for (place, row) in self.touches.rows.iter().enumerate() {
            let times = is_time(row.at) && (0..=MICROS_MAX).contains(&row.wait);
            let sizes = row.offset >= 0 && row.bytes >= 0;
            if !times || !sizes || !is_in(row.file, files) || !is_in(row.fetch, fetches) {
                return wrong(format!("touch {place} has values that can't be"));
            }
        }
        for (place, row) in self.fetches.rows.iter().enumerate() {
            let times = [row.queued, row.sent, row.first_byte, row.received, row.ready];
            let sizes = row.groups >= 0 && row.bytes >= 0;
            let places = is_in(row.snapshot, snapshots) && is_in(row.file, files);
            if !times.into_iter().all(is_time) || !sizes || !places {
                return wrong(format!("fetch {place} has values that can't be"));
            }
        }
        let refers = |segment: &Segment| {
            is_in(segment.touch, self.touches.rows.len()) && is_in(segment.fetch, fetches)
        };
        if !self.path.iter().all(refers) {
            return wrong("the critical path names rows that it does not have".to_owned());
        }
        path::check(&self.path, self.path_end()).map_err(TraceError::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::small;

    fn parsed(change: impl FnOnce(&mut serde_json::Value)) -> Result<Trace, String> {
        let mut value = serde_json::to_value(small()).unwrap();
        change(&mut value);
        Trace::parse(value.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn traces_round_trip_through_their_text() {
        let trace = small();
        assert_eq!(Trace::parse(trace.to_json().unwrap().as_bytes()).unwrap(), trace);
    }

    #[test]
    fn invalid_traces_are_refused_with_the_reason() {
        let set = |place: &str, to: serde_json::Value| {
            parsed(|value| *value.pointer_mut(place).unwrap() = to).unwrap_err()
        };
        let told = |error: String, words: &str| assert!(error.contains(words), "{error}");
        told(set("/format", "x".into()), "its format is \"x\"");
        told(set("/version", 2.into()), "version 2");
        told(set("/version", "1".into()), "no version");
        told(set("/ready", 99_999_999.into()), "after its end");
        told(set("/touches/rows/0/3", 7.into()), "there is no tier 7");
        told(set("/touches/rows/0/2", 70.into()), "touch 0");
        told(set("/touches/rows/0/1", (-5).into()), "touch 0");
        told(set("/touches/columns/0", "when".into()), "the columns of touches");
        told(set("/fetches/rows/0/5", (-1).into()), "there is no class of fetches -1");
        told(set("/fetches/rows/0/1", i64::MAX.into()), "fetch 0");
        told(set("/files/0/1", 9.into()), "a snapshot that it does not have");
        told(set("/path/0/touch", 9.into()), "names rows");
        told(set("/path/0/to", 1.into()), "critical path");
        for bytes in [&b""[..], b"{}", b"[1]", b"\xff\xfe", b"{\"format\":\"inlay-trace\"}"] {
            Trace::parse(bytes).unwrap_err();
        }
        let nested = "[".repeat(100_000);
        Trace::parse(nested.as_bytes()).unwrap_err();
    }
}
