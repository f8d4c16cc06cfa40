//! Wire types of the daemon's HTTP API: JSON over HTTP/1.1 on a unix socket.
//!
//! Paths begin with the API version. Within one version, fields are only ever added.

mod sandboxes;
mod traces;

use std::collections::BTreeMap;

use inlay_store::ids::SnapshotId;
use inlay_store::profile::ProfileLabel;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use sandboxes::*;
pub use traces::*;

use inlay_mounts::{
    Changes, MountFlags, MountRecord, Owner, Owners, PathText, ProcessId, Umount,
    View as MountView, WantedView,
};

/// Status of the daemon.
pub const STATUS: &str = "/v1/status";
/// Mounts: list, create, delete.
pub const MOUNTS: &str = "/v1/mounts";
/// Blocks until a mount is gone.
pub const GONE: &str = "/v1/mounts/gone";
/// Attached snapshots.
pub const ATTACHED: &str = "/v1/attached";
/// Progress of prefetching.
pub const PREFETCH: &str = "/v1/prefetch";
/// OpenAPI description of this API.
pub const OPENAPI: &str = "/v1/openapi.json";
/// Stops the daemon.
pub const STOP: &str = "/v1/stop";

/// Header with the idempotency key of a mutating request: a retry with the same key is answered
/// from the first execution.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Header that marks a replayed answer.
pub const IDEMPOTENCY_REPLAYED: &str = "idempotency-replayed";
/// Header with the caller's deadline: `500ms`, `5s`, `2m`.
pub const DEADLINE: &str = "inlay-deadline";

/// Header of a stream's answer: the bytes of stdin that may be in flight.
pub const STDIN_WINDOW: &str = "inlay-stdin-window";

/// Maximum length of a request body, in bytes.
pub const REQUEST_LEN_MAX: usize = 4 << 20;
/// Maximum length of a request body with a command line, in bytes: JSON may need six bytes for each
/// byte of the 2 MiB that the kernel allows.
pub const COMMAND_REQUEST_LEN_MAX: usize = 16 << 20;
/// Maximum length of an answer body, in bytes.
pub const ANSWER_LEN_MAX: usize = 64 << 20;

/// A store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct StoreRef {
    /// URL of the store. Defaults to the store inside the daemon's state directory.
    pub url: Option<String>,
    /// Allow plain HTTP to hosts other than the loopback.
    pub plain_http: bool,
}

/// Whether a snapshot's contents are cached on this host's disk.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum CacheUse {
    /// In the host's cache.
    Kept,
    /// Not on disk; in memory only.
    None,
}

/// How much of a snapshot is prefetched.
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
    /// Nothing: fetch on demand only
    Off,
    /// Data that earlier starts have read, or a guess, and the neighbours of each read
    Profile,
    /// Everything, likely groups first, as far as the cache has room
    #[default]
    All,
}

/// Whether the reads of this start are recorded in the store's profile, which later starts prefetch
/// by.
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
    /// Record them
    #[default]
    On,
    /// Do not record them
    Off,
}

/// How a snapshot is prefetched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct LoadOptions {
    /// How much is prefetched.
    #[serde(default)]
    pub prefetch: Prefetch,
    /// Label of the profile that is used and updated. Defaults to the profile of all starts.
    #[serde(default)]
    #[schema(value_type = String)]
    pub label: ProfileLabel,
    /// Whether the profile is updated.
    #[serde(default)]
    pub record: RecordProfile,
    /// Paths in the snapshot to fetch before everything else, each with the tree below it.
    #[serde(default)]
    pub first: Vec<PathText>,
}

/// Mounts a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MountRequest {
    /// Name or id of the snapshot.
    pub snapshot: String,
    /// The store that holds it.
    pub store: StoreRef,
    /// Whether its contents are cached on disk.
    pub cache: CacheUse,
    /// Absolute path of the mount point, as the caller sees it.
    pub mountpoint: PathText,
    /// Mount for this process of the host instead of the caller: the path is resolved in its mount
    /// namespace and created if it is missing.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Read-only, or writable with changes kept on this host.
    pub view: WantedView,
    /// New owner of the snapshot's root directory and of every file with the same owner. Other
    /// users and groups keep their files. Defaults to the owners in the snapshot.
    #[serde(default)]
    pub chown: Option<Owner>,
    /// Restrictions on the mount, regardless of file modes: `nosuid`, `nodev`, `noexec`.
    #[serde(default)]
    pub flags: MountFlags,
    /// What issued the request.
    #[serde(default)]
    pub origin: MountOrigin,
    /// How the snapshot is prefetched. If it is already attached, the options of its first mount
    /// apply.
    #[serde(default)]
    pub load: LoadOptions,
    /// Deadline in milliseconds.
    pub deadline_ms: u64,
}

/// What issued a mount request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MountOrigin {
    /// A command or a program.
    #[default]
    Command,
    /// mount(8), usually for a line of fstab. Unless `pid` is given, the mount point is the
    /// caller's working directory. An identical mount that exists already is returned instead of an
    /// error. If the store fails to resolve a name within 2 seconds, the name resolves to the
    /// snapshot it last stood for on this host.
    MountTable,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MountInfo {
    /// The mount point: absolute, without symbolic links.
    pub mountpoint: PathText,
    /// The mounted snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Read-only, or writable and where the changes are.
    #[serde(flatten)]
    pub view: MountView,
    /// The kernel's unique id of the mount.
    pub mount: u64,
    /// Users and groups of the snapshot that the mount shows as others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<Owners>,
    /// Restrictions of the mount, regardless of file modes.
    #[serde(default, skip_serializing_if = "MountFlags::is_empty")]
    pub flags: MountFlags,
    /// The id of the sandbox that the mount belongs to and ends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The name of that sandbox.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// A process that sees the mount, if it is in another mount namespace than the daemon and no
    /// sandbox's: two containers may each have a mount at the same path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<NamespaceInfo>,
    /// The daemon's process; null if none runs.
    pub server: Option<ProcessId>,
    /// Whether the mount is served.
    pub served: bool,
}

impl MountInfo {
    /// The mount of a record, not served.
    pub fn of(record: MountRecord) -> Self {
        Self {
            mount: record.seen.number(),
            mountpoint: record.mountpoint,
            snapshot: record.snapshot,
            view: record.view,
            owners: record.owners,
            flags: record.flags,
            sandbox_id: record.owner,
            sandbox: None,
            inside: None,
            server: None,
            served: false,
        }
    }
}

/// The mount namespace of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamespaceInfo {
    /// A process in it; pass it as `--pid` to `inlay umount`.
    pub pid: u32,
    /// Name of the process.
    pub name: String,
    /// Id of its container, if the path of its cgroup contains one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// Unmounts a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UmountRequest {
    /// Absolute path of the mount point, as the caller sees it.
    pub mountpoint: PathText,
    /// Process of the host in whose mount namespace the path is resolved. Defaults to the caller.
    #[serde(default)]
    pub pid: Option<u32>,
    /// What to do if the mount is in use.
    pub how: Umount,
    /// What to do with kept changes.
    pub changes: Changes,
}

/// An ended mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UmountAnswer {
    /// Its mount point.
    pub mountpoint: PathText,
    /// Its snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Read-only, or writable and where the changes are.
    #[serde(flatten)]
    pub view: MountView,
    /// Whether processes can still write its changes.
    pub in_use: bool,
    /// Whether its changes were discarded.
    pub discarded: bool,
}

/// Waits until a mount is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoneRequest {
    /// The kernel's unique id of the mount, from its record.
    pub mount: u64,
    /// Deadline in milliseconds; capped at one minute.
    pub deadline_ms: u64,
}

/// Result of waiting for a mount to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoneAnswer {
    /// Whether the mount is gone; false if the deadline passed first.
    pub gone: bool,
}

/// Status of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusAnswer {
    /// Version of the program.
    pub version: String,
    /// The daemon's process.
    pub server: ProcessId,
    /// Process id of the keeper.
    pub keeper: Option<u32>,
    /// Id of the keeper's session, which outlives this daemon.
    pub session: String,
    /// The state directory.
    pub state: PathText,
    /// Number of mounts.
    pub mounts: usize,
    /// Number of attached snapshots, including those already detached that are still in use.
    pub attached: usize,
    /// Number of snapshots sealed on this host and not yet in their stores.
    #[serde(default)]
    pub sealed: usize,
    /// Failures and damage among those snapshots.
    #[serde(default)]
    pub outbox: SyncAnswer,
    /// Limit of the cache: a size in bytes, a share of the disk, or `auto`.
    pub cache_size: Option<String>,
    /// Milliseconds without a mount after which the daemon exits. Absent: never.
    pub idle_exit_ms: Option<u64>,
    /// Fingerprint of the environment variables that configure stores; does not reveal them.
    pub environment: Fingerprint,
    /// Damaged records of mounts and attached snapshots. They are left in place.
    #[serde(default)]
    pub damaged: Vec<DamagedRecord>,
}

/// A damaged record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedRecord {
    /// Which record is damaged, and how.
    pub why: String,
}

/// A keyed digest of secret values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fingerprint {
    /// The key, in hexadecimal; a new one for each daemon.
    pub key: String,
    /// The digest under that key.
    pub digest: String,
}

/// Which part of a snapshot a slot shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// The common part: most files.
    Common,
    /// The files that are not in the common part.
    Apart,
}

/// An attached snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachedSnapshot {
    /// Its slot below the host's FUSE mount.
    pub slot: u32,
    /// The snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// The store that holds it.
    pub store: StoreRef,
    /// Whether its contents are cached on disk.
    pub cache: CacheUse,
    /// Which part of it the slot shows.
    pub part: Part,
    /// Owner shown for its root directory and for every file with the same owner. Defaults to the
    /// owner in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chown: Option<Owner>,
    /// Whether it is detached and served only to files that are still open.
    pub ending: bool,
}

/// Progress of prefetching.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PrefetchAnswer {
    /// Stores in use.
    pub stores: Vec<StoreStatus>,
    /// Attached snapshots.
    pub snapshots: Vec<LoadingStatus>,
}

/// State of the link to a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// The store.
    pub store: StoreRef,
    /// Lowest time to first byte of recent seconds, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// Highest throughput of recent seconds, in bytes per second.
    pub rate: Option<f64>,
    /// Share of the link that prefetching may use: 1 unless it delayed readers.
    pub share: f64,
    /// Requests so far, by class.
    pub requests: BTreeMap<String, u64>,
    /// Bytes fetched so far, by class.
    pub bytes: BTreeMap<String, u64>,
    /// Groups queued now, by class.
    pub queued: BTreeMap<String, u64>,
    /// Readers waiting now.
    pub readers_waiting: u64,
}

/// Prefetch progress of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoadingStatus {
    /// The snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// The store that holds it.
    pub store: StoreRef,
    /// How it is prefetched.
    pub load: LoadOptions,
    /// Number of runs merged into the profile in use. Absent if there is no profile.
    pub profile_runs: Option<u32>,
    /// Whether this start is being recorded.
    pub recording: bool,
    /// Phase: `off`, `preparing`, `first`, `rest`, `resting`, `done`.
    pub phase: String,
    /// Groups of the snapshot.
    pub groups: u32,
    /// Groups considered so far: cached, fetched, in flight or given up.
    pub looked: u32,
    /// Of these, groups that were already cached on this host.
    pub here: u32,
    /// Groups prefetched.
    pub fetched: u32,
    /// Stored bytes of the prefetched groups.
    pub fetched_bytes: u64,
    /// Of these, bytes that readers have used since.
    pub used_bytes: u64,
    /// Groups that could not be fetched.
    pub given_up: u32,
    /// Groups that readers have touched.
    pub touched: u64,
}

/// What to do about mounts when the daemon is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IfMounted {
    /// Refuse, and list them.
    Refuse,
    /// Unmount them; those in use, lazily.
    Unmount,
    /// Refuse, also while a request is in flight, a snapshot is on its way to its store, a trace is
    /// recorded or a client reads the output of a sandbox. Never waits.
    RefuseIfUsed,
}

/// Stops the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopRequest {
    /// What to do about mounts.
    pub if_mounted: IfMounted,
}

/// The daemon is stopping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopAnswer {
    /// The daemon's process.
    pub server: ProcessId,
    /// Mount points that were unmounted.
    pub unmounted: Vec<PathText>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorAnswer {
    /// Category of the error, for programs.
    pub kind: ErrorKind,
    /// What failed, and on what.
    pub error: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// If a program can't be run in a sandbox, the exit code that a shell would return: 127 if the
    /// program does not exist, 126 otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
}

/// Error categories that callers may distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request is invalid.
    Request,
    /// The object does not exist.
    NotFound,
    /// Nothing is mounted at the path.
    NotMounted,
    /// The object is in use or exists already.
    Conflict,
    /// The caller's deadline passed.
    Deadline,
    /// The daemon is stopping; retry with its successor.
    Ending,
    /// Too many requests or other work in flight; retry later.
    Busy,
    /// The idempotency key was used for a different request.
    KeyReused,
    /// Any other failure.
    Failed,
    /// A category added by a newer daemon.
    #[serde(other)]
    Unknown,
}

impl ErrorAnswer {
    /// Splits `message` into error and hint: messages of this program say what happened and, after
    /// a semicolon, what to do.
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
    fn a_message_has_an_event_and_advice() {
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
