//! How a capture is done, and what came of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::PackOptions;
use inlay_store::remote::{Name, SnapshotRecord};

use super::subject::LeftOut;

/// Tells a capture to stop. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the capture to stop. Once its snapshot is being published it no longer does.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Which snapshot is recorded as the new one's parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CaptureParent {
    /// Of a directory: its last snapshot, or else the one that it was mounted from. Of a filesystem:
    /// the image.
    #[default]
    Automatic,
    /// This one.
    Given(SnapshotId),
    /// None.
    None,
}

/// How much is taken at most. More is an error.
#[derive(Debug, Clone, Copy)]
pub struct CaptureLimits {
    /// Names, directories among them.
    pub entries: u32,
    /// Bytes of files that have to be read, holes not counted.
    pub read_bytes: u64,
    /// Bytes of one file, holes not counted.
    pub file_bytes: u64,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self { entries: 8_000_000, read_bytes: 1 << 40, file_bytes: 1 << 39 }
    }
}

/// How a capture is done.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// [`Kind::Directory`] or [`Kind::Filesystem`]. The latter has the configuration of the snapshot
    /// that it began with.
    pub kind: Kind,
    /// From where, for people: `sandbox:/path`.
    pub source: String,
    /// The name that shall stand for the snapshot.
    pub name: Option<Name>,
    /// The user's remarks.
    pub labels: BTreeMap<String, String>,
    /// How long after its last use it may be removed.
    pub ttl: Option<Duration>,
    /// What is left out, in the syntax of gitignore(5), relative to the captured directory.
    pub exclude: Vec<String>,
    /// Which parent is recorded.
    pub parent: CaptureParent,
    /// A directory of this sandbox's where it is remembered what was seen, so that the next capture of
    /// the same path takes less time. Made if it is missing. May be lost.
    pub seen_dir: Option<PathBuf>,
    /// How much is taken at most.
    pub limits: CaptureLimits,
    /// How files are packed.
    pub pack: PackOptions,
    /// Tells it to stop.
    pub cancel: Cancel,
}

impl CaptureOptions {
    /// All that can be left to choice is.
    pub fn new(kind: Kind, source: impl Into<String>) -> Self {
        Self {
            kind,
            source: source.into(),
            name: None,
            labels: BTreeMap::new(),
            ttl: None,
            exclude: Vec::new(),
            parent: CaptureParent::default(),
            seen_dir: None,
            limits: CaptureLimits::default(),
            // Somebody waits. FORMAT, Why these numbers, has what it costs in bytes.
            pack: PackOptions { level: 1, ..PackOptions::default() },
            cancel: Cancel::default(),
        }
    }
}

/// How long the steps of a capture took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureTimes {
    /// Looking and reading while the subject went on.
    pub ahead: Duration,
    /// Packing what was set aside.
    pub aside: Duration,
    /// Putting the tree together.
    pub build: Duration,
    /// Waiting for the last blobs to be in the store.
    pub blobs: Duration,
    /// Writing the index.
    pub write: Duration,
    /// Uploading it and its record.
    pub publish: Duration,
}

/// What a capture did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureStats {
    /// Names in the snapshot, its root among them.
    pub entries: u64,
    /// Files whose bytes were read.
    pub files_read: u64,
    /// The bytes of these.
    pub bytes_read: u64,
    /// Of them, files that were set aside while the subject was frozen.
    pub files_set_aside: u64,
    /// Bytes of the blobs that were made.
    pub stored_bytes: u64,
    /// Blobs that were made.
    pub blobs: u64,
    /// How often everything was looked at before the subject was frozen.
    pub rounds: u32,
    /// How long it took.
    pub times: CaptureTimes,
}

/// What came of a capture.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The snapshot's record.
    pub record: SnapshotRecord,
    /// What was done.
    pub stats: CaptureStats,
    /// How long the subject stood still.
    pub frozen: Duration,
    /// What is not in the snapshot; of what patterns exclude, the first thousand.
    pub left_out: Vec<LeftOut>,
    /// How much else patterns exclude.
    pub left_out_more: u64,
    /// Whether the snapshot is the one that the last capture made, or that is mounted there.
    pub unchanged: bool,
}
