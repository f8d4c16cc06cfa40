//! What the daemon and its clients say to each other: JSON over HTTP/1.1 on a unix socket.
//!
//! Paths begin with the version. Within one version, fields are only added.

pub(super) mod sandboxes;
pub(super) mod traces;

use std::collections::BTreeMap;

use inlay_store::ids::SnapshotId;
use inlay_store::profile::ProfileLabel;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use sandboxes::*;
pub use traces::*;

use super::attached::Part;
use crate::mount::{Changes, MountRecord, Owner, PathText, ProcessId, Umount, WantedView};

/// How the daemon is.
pub const STATUS: &str = "/v1/status";
/// The mounts: list, create, delete.
pub const MOUNTS: &str = "/v1/mounts";
/// Waits until a mount is gone.
pub const GONE: &str = "/v1/mounts/gone";
/// The attached snapshots.
pub const ATTACHED: &str = "/v1/attached";
/// What is loaded ahead of readers.
pub const PREFETCH: &str = "/v1/prefetch";
/// The description of all of it.
pub const OPENAPI: &str = "/v1/openapi.json";
/// Ends the daemon.
pub const STOP: &str = "/v1/stop";

/// The header that names a request to change something: the same key asks for the same thing.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header of an answer that was given before.
pub const IDEMPOTENCY_REPLAYED: &str = "idempotency-replayed";
/// The header that says how long the caller waits: `500ms`, `5s`, `2m`.
pub const DEADLINE: &str = "inlay-deadline";

/// The longest body of a request, in bytes.
pub const REQUEST_LEN_MAX: usize = 4 << 20;
/// The longest body of an answer, in bytes.
pub const ANSWER_LEN_MAX: usize = 64 << 20;

/// A store, as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct StoreRef {
    /// Its URL; without one, the store inside the daemon's state.
    pub url: Option<String>,
    /// Whether plain HTTP may go to other machines.
    pub plain_http: bool,
}

/// Whether a snapshot's contents are kept on this host's disk.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum CacheUse {
    /// In the host's cache.
    Kept,
    /// Nowhere but in memory.
    None,
}

/// How much of a snapshot is loaded ahead of its readers.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// Nothing: only what is read is fetched
    Off,
    /// What earlier starts have read, or what is likely, and what lies beside what is read
    Profile,
    /// Everything, the likely first, as far as the cache has room
    #[default]
    All,
}

/// Whether what is read first is remembered in the store for the next start.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum RecordProfile {
    /// It is
    #[default]
    On,
    /// It is not
    Off,
}

/// How a snapshot is loaded ahead of its readers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct LoadOptions {
    /// How much.
    #[serde(default)]
    pub prefetch: Prefetch,
    /// Whose profile is used and learned: of all starts together, if there is no label.
    #[serde(default)]
    #[schema(value_type = String)]
    pub label: ProfileLabel,
    /// Whether it is learned.
    #[serde(default)]
    pub record: RecordProfile,
    /// Paths in the snapshot that come before everything else, with all that is below them.
    #[serde(default)]
    pub first: Vec<PathText>,
}

/// Mount a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MountRequest {
    /// Name or id.
    pub snapshot: String,
    /// Where it is stored.
    pub store: StoreRef,
    /// Where its contents are kept.
    pub cache: CacheUse,
    /// An absolute path, as the caller sees it.
    pub mountpoint: PathText,
    /// Mount for this process of the host instead of the caller: where it sees the path, which is made
    /// if it is missing.
    #[serde(default)]
    pub pid: Option<u32>,
    /// How it is to be shown.
    pub view: WantedView,
    /// Whose the snapshot's root directory, and all that has the same owner, is to be; not given:
    /// as in the snapshot.
    #[serde(default)]
    pub chown: Option<Owner>,
    /// How it is loaded ahead. Of a snapshot that is mounted already, the first mount's counts.
    #[serde(default)]
    pub load: LoadOptions,
    /// How long the caller waits, in milliseconds.
    pub deadline_ms: u64,
}

/// A mount, as users see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MountShown {
    /// What is recorded.
    #[serde(flatten)]
    pub record: MountRecord,
    /// The name of the sandbox that it belongs to, if it is one's.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// The daemon.
    pub server: Option<ProcessId>,
    /// Whether it answers.
    pub served: bool,
}

/// Unmount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UmountRequest {
    /// An absolute path, as the caller sees it.
    pub mountpoint: PathText,
    /// The process of the host that sees the path, instead of the caller.
    #[serde(default)]
    pub pid: Option<u32>,
    /// What to do if it is in use.
    pub how: Umount,
    /// What becomes of kept changes.
    pub changes: Changes,
}

/// What was unmounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UmountAnswer {
    /// What it was.
    #[serde(flatten)]
    pub record: MountRecord,
    /// Whether its changes are still written to by somebody.
    pub in_use: bool,
    /// Whether they were thrown away.
    pub discarded: bool,
}

/// Wait until a mount is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoneRequest {
    /// The kernel's number of the mount, as its record has it.
    pub mount: u64,
    /// How long the caller waits, in milliseconds; at most a minute counts.
    pub deadline_ms: u64,
}

/// Whether it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoneAnswer {
    /// Nothing is mounted there any more.
    pub gone: bool,
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusAnswer {
    /// The program's version.
    pub version: String,
    /// The daemon.
    pub server: ProcessId,
    /// The keeper's process.
    pub keeper: Option<u32>,
    /// The keeper's life.
    pub session: String,
    /// The state directory.
    pub state: PathText,
    /// How many mounts there are.
    pub mounts: usize,
    /// How many snapshots are attached, those too that only their last users still see.
    pub attached: usize,
    /// How many snapshots are sealed on this host and not in their stores yet.
    #[serde(default)]
    pub sealed: usize,
    /// The limit of the cache: a size in bytes, a share of the disk, or `auto`.
    pub cache_size: Option<String>,
    /// After how many milliseconds without a mount it ends; never if there is no number.
    pub idle_exit_ms: Option<u64>,
    /// Identifies the variables that speak to stores, without telling them.
    pub environment: Fingerprint,
}

/// A keyed digest of what must not be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fingerprint {
    /// The key, in hexadecimal digits; another one for each daemon.
    pub key: String,
    /// The digest under that key.
    pub digest: String,
}

/// A snapshot that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachedShown {
    /// Its slot below the host's FUSE mount.
    pub slot: u32,
    /// Which.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Where it is stored.
    pub store: StoreRef,
    /// Where its contents are kept.
    pub cache: CacheUse,
    /// How much of it is shown there.
    pub part: Part,
    /// Whether it is out of sight and served to its last users only.
    pub ending: bool,
}

/// What is loaded ahead of readers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PrefetchAnswer {
    /// The stores in use.
    pub stores: Vec<StoreShown>,
    /// The snapshots.
    pub snapshots: Vec<LoadingShown>,
}

/// What is known of the way to a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreShown {
    /// Which.
    pub store: StoreRef,
    /// The least time to the first byte of an answer of the last seconds, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// The greatest rate of the last seconds, in bytes a second.
    pub rate: Option<f64>,
    /// Which part of the link prefetching takes: 1, unless readers had to wait for it.
    pub share: f64,
    /// Requests so far, by class.
    pub requests: BTreeMap<String, u64>,
    /// Bytes so far, by class.
    pub bytes: BTreeMap<String, u64>,
    /// Groups that wait for their turn now, by class.
    pub queued: BTreeMap<String, u64>,
    /// Readers that wait now.
    pub readers_waiting: u64,
}

/// How far the loading of one snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoadingShown {
    /// Which.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Where it is stored.
    pub store: StoreRef,
    /// How it is loaded.
    pub load: LoadOptions,
    /// How many runs the profile has that is used; none if there is no profile.
    pub profile_runs: Option<u32>,
    /// Whether this start is being recorded.
    pub recording: bool,
    /// What it is doing: `off`, `preparing`, `first`, `rest`, `resting`, `done`.
    pub phase: String,
    /// Groups of the snapshot.
    pub groups: u32,
    /// Groups that were looked at: found on this host, fetched, on their way or given up.
    pub looked: u32,
    /// Of these, what this host had already.
    pub here: u32,
    /// Groups fetched ahead of readers.
    pub fetched: u32,
    /// Their stored bytes.
    pub fetched_bytes: u64,
    /// Of these, what readers have read since.
    pub used_bytes: u64,
    /// Groups that could not be had.
    pub given_up: u32,
    /// Groups that readers have touched.
    pub touched: u64,
}

/// What to do about mounts when the daemon is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IfMounted {
    /// Refuse, and list them.
    Refuse,
    /// Unmount them, those in use lazily.
    Unmount,
}

/// End.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopRequest {
    /// What to do about mounts.
    pub if_mounted: IfMounted,
}

/// It will end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopAnswer {
    /// The daemon.
    pub server: ProcessId,
    /// What was unmounted.
    pub unmounted: Vec<PathText>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorAnswer {
    /// Which of the cases that callers tell apart.
    pub kind: ErrorKind,
    /// What happened, to what.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
    /// Of a program that can't be run in a sandbox: the exit code that a shell has for that, 127 if
    /// there is no such program, else 126.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
}

/// The cases that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request makes no sense.
    Request,
    /// There is no such thing.
    NotFound,
    /// Nothing is mounted there.
    NotMounted,
    /// It is in use, or there is one already.
    Conflict,
    /// It took longer than the caller waits.
    Deadline,
    /// The daemon is about to end: ask the next one.
    Ending,
    /// Too many requests at once.
    Busy,
    /// The key was used for another request.
    KeyReused,
    /// Everything else.
    Failed,
    /// A case that a newer daemon tells apart.
    #[serde(other)]
    Unknown,
}

impl ErrorAnswer {
    /// Messages of this program say what happened and, after a semicolon, what to do.
    pub fn new(kind: ErrorKind, message: &str) -> Self {
        let (error, hint) = match message.split_once("; ") {
            Some((error, hint)) => (error, Some(hint.to_owned())),
            None => (message, None),
        };
        Self { kind, error: error.to_owned(), hint, exit_code: None }
    }
}

impl std::fmt::Display for ErrorAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_happened_and_what_to_do() {
        let answer = ErrorAnswer::new(ErrorKind::Conflict, "/mnt is in use; unmount lazily");
        assert_eq!(answer.error, "/mnt is in use");
        assert_eq!(answer.hint.as_deref(), Some("unmount lazily"));
        assert_eq!(answer.to_string(), "/mnt is in use; unmount lazily");
    }

    #[test]
    fn a_newer_daemons_kinds_of_errors_are_understood() {
        let json = r#"{"kind":"eclipse","error":"dark","hint":null,"more":1}"#;
        let answer: ErrorAnswer = serde_json::from_str(json).unwrap();
        assert_eq!((answer.kind, answer.to_string()), (ErrorKind::Unknown, "dark".to_owned()));
    }
}
