//! Wire types for sandboxes, live mounts and snapshots of sandboxes.

use std::collections::BTreeMap;

use inlay_mounts::{Changes, Owner, PathText, Umount};
use inlay_sandbox::{
    Confinement, Exit, SandboxId, SandboxOptions, Secret, Stdin, StreamPosition, WindowSize,
    only_known,
};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::SnapshotRecord;
use serde::{Deserialize, Serialize};

use super::{CacheUse, LoadOptions, StoreRef};

/// Sandboxes: list, create. Below it, by name or id: inspect, remove, and the actions of [`word`].
pub const SANDBOXES: &str = "/v1/sandboxes";
/// Snapshots of sandboxes: take one.
pub const SNAPSHOTS: &str = "/v1/snapshots";

/// Blocks until sealed snapshots are in their stores.
pub const SYNC: &str = "/v1/sync";

/// Path segments after a sandbox's name.
pub mod word {
    /// Starts its first program.
    pub const START: &str = "start";
    /// Stops its processes.
    pub const STOP: &str = "stop";
    /// Blocks until its first process ends.
    pub const WAIT: &str = "wait";
    /// Runs a program in it; upgrades to a stream of frames.
    pub const EXEC: &str = "exec";
    /// Attaches to its first program; upgrades to a stream of frames.
    pub const ATTACH: &str = "attach";
    /// Output of its first program so far.
    pub const LOGS: &str = "logs";
    /// Files in it, as tar archives.
    pub const FILES: &str = "files";
    /// Mounts in it.
    pub const MOUNTS: &str = "mounts";
}

/// Creates a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreateSandbox {
    /// Name or id of the image or filesystem snapshot that becomes its root.
    pub snapshot: String,
    /// The store that holds the snapshot.
    pub store: StoreRef,
    /// Whether its contents are cached on disk.
    pub cache: CacheUse,
    /// How it is prefetched.
    #[serde(default)]
    pub load: LoadOptions,
    /// Name of the sandbox, unique on this host. Defaults to its id.
    #[serde(default)]
    pub name: Option<String>,
    /// Its command, environment, limits and network. Secrets named here must match `secrets`.
    #[serde(default, deserialize_with = "only_known")]
    pub options: SandboxOptions,
    /// Contents of the files in /run/secrets. They are never written to disk.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// When its first program starts.
    #[serde(default)]
    pub start: StartWhen,
    /// What happens when that program ends.
    #[serde(default)]
    pub when_ended: WhenEnded,
    /// Snapshots to mount in it before its first program starts.
    #[serde(default)]
    pub mounts: Vec<MountInto>,
    /// Deadline in milliseconds.
    pub deadline_ms: u64,
}

/// When a sandbox's first program starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartWhen {
    /// Immediately.
    #[default]
    Now,
    /// On a separate request, so that a client can attach first.
    Later,
}

/// What happens to a sandbox when its first program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhenEnded {
    /// It stays, with its changes.
    #[default]
    Keep,
    /// It is removed.
    Remove,
}

/// Access to a live mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IntoView {
    /// Read-only.
    ReadOnly,
    /// Writable. Changes live as long as the mount or the sandbox, whichever ends first.
    #[default]
    Writable,
}

/// Mounts a snapshot into a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MountInto {
    /// Name or id of the snapshot; `empty` mounts an empty directory.
    pub snapshot: String,
    /// The store that holds it.
    pub store: StoreRef,
    /// Whether its contents are cached on disk.
    pub cache: CacheUse,
    /// Absolute path in the sandbox. It is created if it is missing.
    pub path: PathText,
    /// Read-only or writable.
    #[serde(default)]
    pub view: IntoView,
    /// Owner shown for its root directory and for every file with the same owner. Defaults to the
    /// owner in the snapshot.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// How it is prefetched.
    #[serde(default)]
    pub load: LoadOptions,
    /// Deadline in milliseconds.
    pub deadline_ms: u64,
}

/// Unmounts a snapshot from a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UmountFrom {
    /// Absolute path in the sandbox.
    pub path: PathText,
    /// What to do if the mount is in use.
    pub how: Umount,
    /// What to do with changes made below the path.
    pub changes: Changes,
}

/// Result of an unmount from a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UmountedFrom {
    /// Path that was unmounted.
    pub path: PathText,
    /// The snapshot that was mounted there.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Whether programs still use it.
    pub in_use: bool,
    /// Whether changes were kept; they reappear when the same snapshot is mounted at the same path.
    pub changes_kept: bool,
}

/// State of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxState {
    /// Being created.
    Creating,
    /// Its first process runs.
    Running,
    /// Its first process has ended.
    Stopped,
    /// Being removed.
    Removing,
    /// One of its records is damaged and was left in place. Its programs keep running, and the only
    /// operation allowed is to remove it by id, with force.
    Damaged,
}

/// A sandbox. If it is damaged, only `id`, `state` and `damage` are certain to be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxInfo {
    /// Its id.
    #[schema(value_type = String)]
    pub id: SandboxId,
    /// Its name; its id if it has none.
    pub name: String,
    /// The snapshot that is its root.
    #[schema(value_type = Option<String>)]
    pub snapshot: Option<SnapshotId>,
    /// Reference that named the snapshot when the sandbox was created.
    pub image: Option<String>,
    /// State of the sandbox.
    pub state: SandboxState,
    /// If it is damaged: which record, how, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// Process id of its first process on this host.
    pub pid: Option<u32>,
    /// How its first process ended.
    pub exit: Option<Exit>,
    /// Creation time, in milliseconds since 1970-01-01 00:00 UTC.
    pub created_ms: Option<u64>,
    /// Its options. Secrets appear by name only.
    pub options: Option<SandboxOptions>,
    /// Confinement of its processes, once known.
    #[serde(default)]
    pub confinement: Option<Confinement>,
    /// Mounts in it.
    pub mounts: Vec<MountedIn>,
}

/// A mount in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MountedIn {
    /// Path in the sandbox.
    pub path: PathText,
    /// The snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Read-only or writable.
    pub view: IntoView,
}

/// Stops a sandbox's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StopSandbox {
    /// Grace period after the first signal to the first process, in milliseconds.
    pub grace_ms: u64,
    /// Snapshot to take first.
    #[serde(default)]
    pub snapshot: Option<TakeSnapshot>,
}

/// Result of stopping a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StoppedSandbox {
    /// The sandbox.
    pub sandbox: SandboxInfo,
    /// The snapshot, if one was requested.
    pub snapshot: Option<SnapshotTaken>,
}

/// Removes a sandbox and its changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RemoveSandbox {
    /// What to do if it runs.
    pub if_running: IfRunning,
}

/// What to do about a running sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IfRunning {
    /// Refuse.
    Refuse,
    /// Kill its processes.
    Kill,
}

/// Attaches to a sandbox's first program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttachTo {
    /// Whether stdin is forwarded.
    #[serde(default)]
    pub stdin: Stdin,
    /// Size of the terminal, if the program has one.
    #[serde(default)]
    pub size: Option<WindowSize>,
    /// For a client that reconnects: the output it has already received. The stream resumes after
    /// it, and fails if that output is no longer buffered, i.e. after a few MiB.
    #[serde(default)]
    pub shown: Option<StreamPosition>,
}

/// Waits for the end of a sandbox's first program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WaitForEnd {
    /// Deadline in milliseconds; capped at one minute.
    pub deadline_ms: u64,
}

/// Result of waiting for a sandbox's first program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EndAnswer {
    /// How the program ended. Absent if it still runs.
    pub exit: Option<Exit>,
}

/// Result of a copy into a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CopiedInto {
    /// Files of all types that were created.
    pub objects: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Devices and sockets, which are skipped.
    pub left_out: u64,
    /// Extended attributes that the target file system rejected.
    #[serde(default)]
    pub attributes_left_out: u64,
}

/// When a snapshot counts as taken.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum WaitFor {
    /// Once it can be mounted on this host
    Sealed,
    /// Once it is in the store
    #[default]
    Durable,
}

/// Takes a snapshot of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TakeSnapshot {
    /// Name or id of the sandbox. Ignored if the request's path names it.
    #[serde(default)]
    pub sandbox: String,
    /// Directory in the sandbox. Defaults to its whole root.
    #[serde(default)]
    pub path: Option<PathText>,
    /// Store that receives the snapshot [default: the store of the sandbox's root].
    #[serde(default)]
    pub store: Option<StoreRef>,
    /// Name to point at the snapshot.
    #[serde(default)]
    pub name: Option<String>,
    /// Labels set by the user.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Retention after the last use, in seconds [default: by kind].
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Patterns of files to leave out, in the syntax of gitignore(5).
    #[serde(default)]
    pub exclude: Vec<String>,
    /// When the snapshot counts as taken.
    #[serde(default)]
    pub wait: WaitFor,
    /// Parent to record: name or id, or `none` [default: the last snapshot taken of this path, or
    /// the snapshot mounted there].
    #[serde(default)]
    pub parent: Option<String>,
    /// Deadline in milliseconds.
    pub deadline_ms: u64,
}

/// Waits until snapshots sealed on this host are in their stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncRequest {
    /// Deadline in milliseconds; capped at one minute.
    pub deadline_ms: u64,
    /// What to do about names that were not moved because they had been moved elsewhere.
    #[serde(default)]
    pub names: ConflictingNames,
}

/// What to do about names that could not be moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictingNames {
    /// Report them until this host sets them.
    #[default]
    Report,
    /// Leave them as they are and stop reporting them.
    Leave,
}

/// Snapshots sealed on this host and not yet in their stores, and problems among them. Each list
/// has at most 100 entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncAnswer {
    /// Number of snapshots that wait.
    pub waiting: usize,
    /// Waiting snapshots with failed upload attempts. They are retried.
    #[serde(default)]
    pub failing: Vec<NotShipped>,
    /// Damaged files on this host. They are left in place, and their snapshots are not uploaded.
    #[serde(default)]
    pub damaged: Vec<DamagedFile>,
    /// Names that were not moved to snapshots that are in their stores.
    #[serde(default)]
    pub name_conflicts: Vec<NameConflict>,
}

/// A snapshot with failed upload attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NotShipped {
    /// The snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Name that will point at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The store it goes to.
    pub store: StoreRef,
    /// Error of the last attempt.
    pub error: String,
    /// Number of failed attempts.
    pub attempts: u32,
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DamagedFile {
    /// Its path.
    pub path: PathText,
    /// Reason that it counts as damaged.
    pub why: String,
}

/// A name that was not moved to a sealed snapshot because it had been moved elsewhere since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NameConflict {
    /// The name.
    pub name: String,
    /// The snapshot it should point at.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// The snapshot it points at. Absent if the name had been removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stands_for: Option<SnapshotId>,
    /// The store.
    pub store: StoreRef,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotTaken {
    /// Its record.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub record: SnapshotRecord,
    /// Whether it is in the store.
    pub durable: bool,
    /// Whether it is identical to an earlier snapshot.
    pub unchanged: bool,
    /// How long the sandbox was frozen, in milliseconds.
    pub frozen_ms: f64,
    /// Total duration, in milliseconds.
    pub took_ms: f64,
    /// Files read for it.
    pub read_files: u64,
    /// Bytes read for it.
    pub read_bytes: u64,
    /// Bytes of the blobs created for it.
    pub stored_bytes: u64,
    /// Files left out, with reasons.
    pub left_out: Vec<OmittedFile>,
    /// Number of further files left out by patterns.
    pub left_out_more: u64,
}

/// A file that is not in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OmittedFile {
    /// Path in the sandbox.
    pub path: PathText,
    /// Why it was left out.
    pub why: String,
}
