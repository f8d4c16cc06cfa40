//! What a trace is: one JSON object. All times are whole microseconds since the start's beginning.
//!
//! Of what there is much (touches, fetches) each is a row of numbers, so that fifty thousand of them
//! are a few megabytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::TraceError;
use super::path;

/// What the field `format` says.
pub const FORMAT: &str = "inlay-trace";
/// The version that is written, and the only one that is read.
pub const VERSION: u64 = 1;
/// The latest moment: about 11 years. What is later is no time of a start.
const MICROS_MAX: i64 = 1 << 48;

/// A recorded start, or whatever else was recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u64,
    /// For people: what was started.
    pub title: String,
    /// The words of the command that recorded it.
    pub command: Vec<String>,
    /// When it was recorded, in UTC.
    pub recorded: String,
    /// Where.
    pub host: HostInfo,
    /// The version of inlay.
    pub inlay: String,
    /// The snapshots that were read.
    pub snapshots: Vec<SnapshotInfo>,
    /// From the beginning to the end of the recording.
    pub duration: u64,
    /// When it was ready, if it was.
    pub ready: Option<u64>,
    /// What counted as ready: `output /PATTERN/`, `port N`, `exit 0`.
    pub ready_by: Option<String>,
    /// Events that found the buffer full.
    pub dropped: u64,
    /// Moments that have a name, in order.
    pub marks: Vec<Mark>,
    /// The files that rows name.
    pub files: Vec<FileRow>,
    /// First touches of files, and reads that had to wait.
    pub touches: Rows<TouchRow>,
    /// Requests to the store.
    pub fetches: Rows<FetchRow>,
    /// What the kernel asked the daemon for.
    pub served: Served,
    /// What the start waited for, from its beginning until it was ready, without gaps.
    pub path: Vec<Segment>,
    /// Sums.
    pub totals: Totals,
}

/// The host of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The kernel's release.
    pub kernel: String,
    /// Processors.
    pub cores: usize,
}

/// A snapshot of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: String,
    /// What it was called when it was attached, if by a name.
    pub name: Option<String>,
    /// Where it is stored.
    pub store: String,
    /// How many groups it has.
    pub groups: u64,
    /// How many files and directories.
    pub files: u64,
    /// The bytes of its groups, decoded.
    pub size: u64,
}

/// A moment with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub at: u64,
    /// Its name.
    pub name: String,
    /// What it was about.
    pub detail: String,
}

/// A file: its path, its snapshot's place among the trace's, its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileRow(pub String, pub u32, pub u64);

/// Many rows, with the names of their columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows<T> {
    /// The names.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<T>,
}

/// The names of a row's columns.
pub(super) trait Columns {
    /// In their order.
    const COLUMNS: &'static [&'static str];
}

#[expect(private_bounds, reason = "what columns a row has is said here alone")]
impl<T: Columns> Rows<T> {
    /// These rows.
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

/// Where the bytes of a read came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The snapshot's index.
    Index,
    /// This host: its cache, or what had just come.
    Cache,
    /// The store, which had been asked for them before they were read.
    InFlight,
    /// The store.
    Store,
    /// The kernel: it reads the cached file by itself, and is not seen doing so.
    Kernel,
}

impl Tier {
    /// All, by their codes.
    pub const ALL: [Self; 5] =
        [Self::Index, Self::Cache, Self::InFlight, Self::Store, Self::Kernel];

    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Cache => "cache",
            Self::InFlight => "in-flight",
            Self::Store => "store",
            Self::Kernel => "kernel",
        }
    }

    /// Its number in rows.
    pub fn code(self) -> i64 {
        self as i64
    }
}

/// What was fetched, and how urgent it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FetchClass {
    /// A reader waited.
    Demand,
    /// A reader came near.
    ReadAhead,
    /// A mounted directory.
    Directory,
    /// What earlier starts have read.
    Profile,
    /// The rest of an image.
    Rest,
    /// An index.
    Index,
    /// The record of what earlier starts have read.
    ProfileRecord,
}

impl FetchClass {
    /// All, by their codes.
    pub const ALL: [Self; 7] = [
        Self::Demand,
        Self::ReadAhead,
        Self::Directory,
        Self::Profile,
        Self::Rest,
        Self::Index,
        Self::ProfileRecord,
    ];

    /// How it is called.
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

    /// Its number in rows.
    pub fn code(self) -> i64 {
        self as i64
    }
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FetchOutcome {
    /// All of it came; or it was still coming when the recording ended, and has no time at which it
    /// was ready.
    Ok,
    /// The store failed, or gave wrong bytes.
    Failed,
    /// Nobody wanted it any more.
    Cancelled,
}

impl FetchOutcome {
    /// All, by their codes.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Cancelled];

    /// Its number in rows.
    pub fn code(self) -> i64 {
        self as i64
    }
}

fn coded<T: Copy>(all: &[T], code: i64, what: &str) -> Result<T, TraceError> {
    let found = usize::try_from(code).ok().and_then(|code| all.get(code));
    found.copied().ok_or_else(|| TraceError::Wrong(format!("there is no {what} {code}")))
}

/// A first touch of a file, or a read that had to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[i64; 8]", into = "[i64; 8]")]
pub struct TouchRow {
    /// When the kernel asked.
    pub at: i64,
    /// How long it waited for the answer.
    pub wait: i64,
    /// Which file of the trace; -1 if that is not known.
    pub file: i64,
    /// Where the bytes came from.
    pub tier: Tier,
    /// From which byte of the file on.
    pub offset: i64,
    /// How many bytes.
    pub bytes: i64,
    /// What was waited for: which fetch of the trace; -1: none.
    pub fetch: i64,
    /// Whether it was the first touch of the file.
    pub first: bool,
}

impl Columns for TouchRow {
    const COLUMNS: &'static [&'static str] =
        &["at", "wait", "file", "tier", "offset", "bytes", "fetch", "first"];
}

impl TouchRow {
    /// When it was answered.
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

/// A request to the store. Times that are not known are -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[i64; 11]", into = "[i64; 11]")]
pub struct FetchRow {
    /// When it was first wanted.
    pub queued: i64,
    /// When the store was asked.
    pub sent: i64,
    /// When the answer began to come.
    pub first_byte: i64,
    /// When all of it had come.
    pub received: i64,
    /// When readers could have it.
    pub ready: i64,
    /// What, and how urgent.
    pub class: FetchClass,
    /// Which snapshot of the trace; -1 if that is not known.
    pub snapshot: i64,
    /// How many groups.
    pub groups: i64,
    /// Stored bytes that were asked for.
    pub bytes: i64,
    /// How it ended.
    pub outcome: FetchOutcome,
    /// A file of the trace that it has bytes of; -1 if none is known.
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
    /// The last thing that is known of it.
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

/// What the kernel asked the daemon for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Served {
    /// Requests.
    pub requests: u64,
    /// Microseconds that the daemon's threads were busy with them.
    pub time: u64,
    /// How many of them were reads of files.
    pub reads: u64,
}

/// What a part of the critical path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentKind {
    /// The snapshot was made visible: its record, its index, the mount.
    Attach,
    /// The sandbox was made and its first program started.
    Runtime,
    /// A reader waited for the store.
    Store,
    /// A reader waited for what was on its way already.
    InFlight,
    /// The daemon answered from this host.
    Served,
    /// The program itself, and the kernel.
    Running,
}

impl SegmentKind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::Attach, Self::Runtime, Self::Store, Self::InFlight, Self::Served, Self::Running];

    /// How it is called.
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

/// A part of the critical path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// From when,
    pub from: u64,
    /// until when.
    pub to: u64,
    /// What it is.
    pub kind: SegmentKind,
    /// The touch that waited; -1: none.
    pub touch: i64,
    /// The fetch that was waited for; -1: none.
    pub fetch: i64,
    /// For people.
    pub what: String,
}

/// Sums over a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Microseconds of the critical path, by kind.
    pub path: BTreeMap<String, u64>,
    /// Touches and the microseconds that they waited, by tier.
    pub touches: BTreeMap<String, TierTotals>,
    /// Fetches and their bytes, by class.
    pub fetches: BTreeMap<String, ClassTotals>,
}

/// Sums over the touches of one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierTotals {
    /// First touches of files.
    pub first: u64,
    /// Later reads that waited.
    pub later: u64,
    /// Microseconds that all of them waited, each for itself.
    pub wait: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Sums over the fetches of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassTotals {
    /// Requests.
    pub requests: u64,
    /// Stored bytes that were asked for.
    pub bytes: u64,
    /// How many failed.
    pub failed: u64,
}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    format: serde_json::Value,
    #[serde(default)]
    version: serde_json::Value,
}

impl Trace {
    /// Reads a trace that may come from anywhere.
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

    /// As it is written.
    pub fn to_json(&self) -> Result<String, TraceError> {
        Ok(serde_json::to_string(self)?)
    }

    /// The end of the critical path.
    pub fn path_end(&self) -> u64 {
        self.ready.unwrap_or(self.duration)
    }

    /// The file of a row.
    pub(super) fn file(&self, place: i64) -> Option<&FileRow> {
        usize::try_from(place).ok().and_then(|place| self.files.get(place))
    }

    /// The fetch of a row.
    pub(super) fn fetch(&self, place: i64) -> Option<&FetchRow> {
        usize::try_from(place).ok().and_then(|place| self.fetches.rows.get(place))
    }

    /// The touch of a row.
    pub(super) fn touch(&self, place: i64) -> Option<&TouchRow> {
        usize::try_from(place).ok().and_then(|place| self.touches.rows.get(place))
    }

    /// Whoever shows it may rely on this: places exist, times are times, the path has no gap.
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
    use crate::trace::testing::small;

    fn parsed(change: impl FnOnce(&mut serde_json::Value)) -> Result<Trace, String> {
        let mut value = serde_json::to_value(small()).unwrap();
        change(&mut value);
        Trace::parse(value.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let trace = small();
        assert_eq!(Trace::parse(trace.to_json().unwrap().as_bytes()).unwrap(), trace);
    }

    #[test]
    fn what_comes_from_elsewhere_is_refused_by_name() {
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
