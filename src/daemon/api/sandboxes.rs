//! Sandboxes, what is mounted into them, and snapshots of them.

use std::collections::BTreeMap;

use inlay_store::ids::SnapshotId;
use inlay_store::remote::SnapshotRecord;
use serde::{Deserialize, Serialize};

use super::{CacheUse, LoadOptions, StoreRef};
use crate::mount::{Changes, Owner, PathText, Umount};
use crate::sandbox::{Exit, SandboxId, SandboxOptions, Secret, Shown, Stdin, WindowSize};

/// The sandboxes: list, create. Below it, by name or id: inspect, remove, and the words of [`word`].
pub const SANDBOXES: &str = "/v1/sandboxes";
/// Snapshots of sandboxes: take one.
pub const SNAPSHOTS: &str = "/v1/snapshots";

/// Waits until what is sealed is in its stores.
pub const SYNC: &str = "/v1/sync";

/// What comes after a sandbox's name in a path.
pub mod word {
    /// Start its first program.
    pub const START: &str = "start";
    /// End its processes.
    pub const STOP: &str = "stop";
    /// Wait for the end of its first process.
    pub const WAIT: &str = "wait";
    /// Run a program in it: becomes a stream of frames.
    pub const EXEC: &str = "exec";
    /// Its first program's input and output: becomes a stream of frames.
    pub const ATTACH: &str = "attach";
    /// Its first program's output so far.
    pub const LOGS: &str = "logs";
    /// Files in it, as tar archives.
    pub const FILES: &str = "files";
    /// What is mounted in it.
    pub const MOUNTS: &str = "mounts";
}

/// Make a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreateSandbox {
    /// The image or filesystem snapshot that is its root: name or id.
    pub snapshot: String,
    /// Where that is stored.
    pub store: StoreRef,
    /// Where its contents are kept.
    pub cache: CacheUse,
    /// How it is loaded ahead.
    #[serde(default)]
    pub load: LoadOptions,
    /// What people call it [default: its id]. No two have the same.
    #[serde(default)]
    pub name: Option<String>,
    /// How it runs. The names of its secrets are those in `secrets`.
    #[serde(default)]
    pub options: SandboxOptions,
    /// Files in its /run/secrets, which are on no disk.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// When its first program starts.
    #[serde(default)]
    pub start: StartWhen,
    /// What is done when that has ended.
    #[serde(default)]
    pub when_ended: WhenEnded,
    /// What is mounted in it before its first program starts.
    #[serde(default)]
    pub mounts: Vec<MountInto>,
    /// How long the caller waits, in milliseconds.
    pub deadline_ms: u64,
}

/// When a sandbox's first program starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartWhen {
    /// At once.
    #[default]
    Now,
    /// When somebody says so, who may be attached by then.
    Later,
}

/// What is done with a sandbox whose first program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhenEnded {
    /// It stays, with all that was changed in it.
    #[default]
    Keep,
    /// It is removed.
    Remove,
}

/// How a live mount is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IntoView {
    /// As it is.
    ReadOnly,
    /// Writable. Changes live as long as the mount, or as the sandbox if it ends first.
    #[default]
    Writable,
}

/// Mount a snapshot into a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MountInto {
    /// Name or id; `empty`: nothing but a directory.
    pub snapshot: String,
    /// Where it is stored.
    pub store: StoreRef,
    /// Where its contents are kept.
    pub cache: CacheUse,
    /// An absolute path, as the sandbox sees it. It is made if it is missing.
    pub path: PathText,
    /// How it is shown.
    #[serde(default)]
    pub view: IntoView,
    /// Whose its root directory, and all that has the same owner, is shown to be.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// How it is loaded ahead.
    #[serde(default)]
    pub load: LoadOptions,
    /// How long the caller waits, in milliseconds.
    pub deadline_ms: u64,
}

/// Unmount something from a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UmountFrom {
    /// An absolute path, as the sandbox sees it.
    pub path: PathText,
    /// What to do if it is in use.
    pub how: Umount,
    /// What becomes of what was changed there.
    pub changes: Changes,
}

/// What was unmounted from a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UmountedFrom {
    /// Where.
    pub path: PathText,
    /// What.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Whether programs still use it.
    pub in_use: bool,
    /// Whether there are changes that are kept, and are there again if the same snapshot is mounted at
    /// the same path.
    pub changes_kept: bool,
}

/// How a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxState {
    /// It is being made.
    Creating,
    /// Its first process runs.
    Running,
    /// Its first process has ended.
    Stopped,
    /// It is being removed.
    Removing,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxShown {
    /// Its id.
    #[schema(value_type = String)]
    pub id: SandboxId,
    /// Its name; if it has none, its id.
    pub name: String,
    /// Its root.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// What that was called when it was made.
    pub image: String,
    /// How it is.
    pub state: SandboxState,
    /// Its first process, as this host numbers it.
    pub pid: Option<u32>,
    /// How that ended.
    pub exit: Option<Exit>,
    /// When it was made: milliseconds since 1970-01-01 00:00 UTC.
    pub created_ms: u64,
    /// How it runs. Secrets are named only.
    pub options: SandboxOptions,
    /// What is mounted in it.
    pub mounts: Vec<MountedIn>,
}

/// Something mounted in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MountedIn {
    /// Where, as the sandbox sees it.
    pub path: PathText,
    /// What.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// How it is shown.
    pub view: IntoView,
}

/// End a sandbox's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StopSandbox {
    /// How long its first process is given after the first signal, in milliseconds.
    pub grace_ms: u64,
    /// What is captured before.
    #[serde(default)]
    pub snapshot: Option<TakeSnapshot>,
}

/// What a sandbox's end brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StoppedSandbox {
    /// The sandbox.
    pub sandbox: SandboxShown,
    /// The snapshot that was wanted.
    pub snapshot: Option<SnapshotTaken>,
}

/// Remove a sandbox, with all that was changed in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RemoveSandbox {
    /// What to do if it runs.
    pub if_running: IfRunning,
}

/// What to do about a sandbox that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IfRunning {
    /// Refuse.
    Refuse,
    /// Kill its processes.
    Kill,
}

/// Be attached to a sandbox's first program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttachTo {
    /// Whether it can be written to.
    #[serde(default)]
    pub stdin: Stdin,
    /// The size of its terminal, if it has one.
    #[serde(default)]
    pub size: Option<WindowSize>,
    /// By who was attached and was cut off: what it has seen. What was printed after that comes first;
    /// if that is not kept any more, as after some MiB, it is an error.
    #[serde(default)]
    pub shown: Option<Shown>,
}

/// Wait for the end of a sandbox's first program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WaitForEnd {
    /// How long the caller waits, in milliseconds; at most a minute counts.
    pub deadline_ms: u64,
}

/// Whether it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EndAnswer {
    /// How; nothing, if it has not.
    pub exit: Option<Exit>,
}

/// What was copied into a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CopiedInto {
    /// Objects of all kinds.
    pub objects: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Devices, which are not made.
    pub left_out: u64,
}

/// When a snapshot that is being taken counts as done.
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
    /// When it can be mounted on this host
    Sealed,
    /// When it is in the store
    #[default]
    Durable,
}

/// Take a snapshot of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TakeSnapshot {
    /// Name or id of the sandbox. In a request that names it already it is of no account.
    #[serde(default)]
    pub sandbox: String,
    /// A directory, as the sandbox sees it; without one, its whole root.
    #[serde(default)]
    pub path: Option<PathText>,
    /// Where the snapshot goes [default: where the sandbox's root is].
    #[serde(default)]
    pub store: Option<StoreRef>,
    /// A name that shall stand for it.
    #[serde(default)]
    pub name: Option<String>,
    /// The user's remarks.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// For how long after its last use it is kept, in seconds [default: by its kind].
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// What is left out, in the words of gitignore(5).
    #[serde(default)]
    pub exclude: Vec<String>,
    /// When it counts as done.
    #[serde(default)]
    pub wait: WaitFor,
    /// What it is said to come from: name or id, or `none` [default: what was captured there before,
    /// or what is mounted there].
    #[serde(default)]
    pub parent: Option<String>,
    /// How long the caller waits, in milliseconds.
    pub deadline_ms: u64,
}

/// Wait until snapshots that are sealed on this host are in their stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncRequest {
    /// How long the caller waits, in milliseconds; at most a minute counts.
    pub deadline_ms: u64,
}

/// How far they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncAnswer {
    /// How many are not there yet.
    pub waiting: usize,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotTaken {
    /// What is known of it.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub record: SnapshotRecord,
    /// Whether it is in the store.
    pub durable: bool,
    /// Whether it is what an earlier snapshot was.
    pub unchanged: bool,
    /// For how long the sandbox stood still, in milliseconds.
    pub frozen_ms: f64,
    /// For how long it took in all, in milliseconds.
    pub took_ms: f64,
    /// Files that were read for it.
    pub read_files: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Bytes of the blobs that were made for it.
    pub stored_bytes: u64,
    /// What is not in it, and why.
    pub left_out: Vec<LeftOutShown>,
    /// How much else is not, because of patterns.
    pub left_out_more: u64,
}

/// Something that a snapshot does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeftOutShown {
    /// Where, as the sandbox sees it.
    pub path: PathText,
    /// Why.
    pub why: String,
}
