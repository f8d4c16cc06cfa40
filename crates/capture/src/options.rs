//! The options of a capture, and its result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::PackOptions;
use inlay_store::remote::{Name, SnapshotRecord};

use super::previous_scan::PendingScan;
use super::subject::LeftOut;

/// Cancels a capture. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    until: Option<Instant>,
}

impl Cancel {
    /// Requests cancellation. Has no effect once the snapshot is being published.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }

    /// Reports whether cancellation was requested.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::SeqCst) || self.until.is_some_and(|until| Instant::now() > until)
    }

    /// Returns a clone that also counts as cancelled from `until` on.
    pub(super) fn or_after(&self, until: Option<Instant>) -> Self {
        Self { flag: Arc::clone(&self.flag), until }
    }
}

/// The parent to record in the new snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CaptureParent {
    /// For a directory: its last snapshot, otherwise the one it was mounted from. For a filesystem:
    /// the image.
    #[default]
    Automatic,
    /// This snapshot.
    Given(SnapshotId),
    /// No parent.
    None,
}

/// When a snapshot counts as complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Promise {
    /// Once it is in the store, with everything it refers to.
    #[default]
    Durable,
    /// Once it is in a directory on this host, from which it is shipped later. Everything that the
    /// last snapshot of the directory and the lower snapshots refer to counts as stored.
    Sealed,
}

/// The limits of a capture. Exceeding one is an error.
#[derive(Debug, Clone, Copy)]
pub struct CaptureLimits {
    /// The number of names, including directories.
    pub entries: u32,
    /// The bytes of all files that must be read, without holes.
    pub read_bytes: u64,
    /// The bytes of one file, without holes.
    pub file_bytes: u64,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self { entries: 8_000_000, read_bytes: 1 << 40, file_bytes: 1 << 39 }
    }
}

/// The options of a capture.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// [`Kind::Directory`] or [`Kind::Filesystem`]. The latter inherits the configuration of the
    /// lower snapshot.
    pub kind: Kind,
    /// The human-readable source: `sandbox:/path`.
    pub source: String,
    /// The name to set for the snapshot.
    pub name: Option<Name>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// How long after its last use it may be removed.
    pub ttl: Option<Duration>,
    /// Paths to leave out, in the syntax of gitignore(5), relative to the captured directory.
    pub exclude: Vec<String>,
    /// The parent to record.
    pub parent: CaptureParent,
    /// When it counts as complete.
    pub promise: Promise,
    /// A cache directory, specific to the sandbox and the store, for what was seen. It speeds up
    /// the next capture of the same path. Created if it is missing; may be lost.
    pub seen_dir: Option<PathBuf>,
    /// The limits.
    pub limits: CaptureLimits,
    /// The options of the packer.
    pub pack: PackOptions,
    /// Cancels the capture.
    pub cancel: Cancel,
}

impl CaptureOptions {
    /// Creates options with defaults for everything else.
    pub fn new(kind: Kind, source: impl Into<String>) -> Self {
        Self {
            kind,
            source: source.into(),
            name: None,
            labels: BTreeMap::new(),
            ttl: None,
            exclude: Vec::new(),
            parent: CaptureParent::default(),
            promise: Promise::default(),
            seen_dir: None,
            limits: CaptureLimits::default(),
            // A caller is waiting. FORMAT, Why these numbers, has the cost in bytes.
            pack: PackOptions { level: 1, ..PackOptions::default() },
            cancel: Cancel::default(),
        }
    }
}

/// The duration of each step of a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureTimes {
    /// Scanning and packing before the freeze.
    pub ahead: Duration,
    /// Packing the files that were set aside.
    pub aside: Duration,
    /// Building the tree.
    pub build: Duration,
    /// Waiting for the last blobs to be stored.
    pub blobs: Duration,
    /// Writing the index.
    pub write: Duration,
    /// Uploading the index and the record.
    pub publish: Duration,
}

/// The statistics of a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureStats {
    /// Names in the snapshot, including its root.
    pub entries: u64,
    /// Files read.
    pub files_read: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Files set aside during the freeze, included in `files_read`.
    pub files_set_aside: u64,
    /// The size of the blobs created, in bytes.
    pub stored_bytes: u64,
    /// Blobs created.
    pub blobs: u64,
    /// Scans before the freeze.
    pub rounds: u32,
    /// The duration of each step.
    pub times: CaptureTimes,
}

/// The result of a capture.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The snapshot's record.
    pub record: SnapshotRecord,
    /// The statistics.
    pub stats: CaptureStats,
    /// How long the subject was frozen, including failed attempts.
    pub frozen: Duration,
    /// Paths left out of the snapshot; of those excluded by patterns, the first thousand.
    pub left_out: Vec<LeftOut>,
    /// The number of further paths excluded by patterns.
    pub left_out_more: u64,
    /// Whether the snapshot is identical to the last one, or to the one mounted there.
    pub unchanged: bool,
    /// See [`Captured::remember`].
    pub(super) scan: Option<PendingScan>,
}

impl Captured {
    /// Saves the scan, so that the next capture of the directory reads only what has changed since.
    ///
    /// That capture takes unchanged contents from this snapshot, and may even be identical to it. So
    /// call this only once the snapshot can't be lost any more. [`capture`](super::capture) does so
    /// itself for [`Promise::Durable`]; a sealed snapshot has to be committed first.
    pub fn remember(&mut self) {
        if let Some(scan) = self.scan.take() {
            scan.save(&self.record);
        }
    }
}
