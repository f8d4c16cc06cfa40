//! Input of a simulation: snapshots, readers, link, host.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use inlay_prefetch::scheduler::{Plan, Urgency};
use inlay_prefetch::{FetchLimits, GroupRef};
use inlay_store::format::{BlobIdx, Group};
use inlay_store::ids::{BlobId, Digest, GroupDigest};
use serde::{Deserialize, Serialize};

use crate::link::LinkModel;

/// Location of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Blob number, shared by all snapshots.
    pub blob: u32,
    /// Offset in the blob, in bytes.
    pub offset: u64,
    /// Stored length, in bytes.
    pub stored_len: u32,
    /// Decoded length, in bytes.
    pub raw_len: u32,
}

/// A snapshot: its groups in tree order.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Groups by number.
    pub groups: Vec<GroupRef>,
    /// Group ranges of large files that share no group with others.
    pub files: Vec<Range<u32>>,
}

impl Snapshot {
    /// Creates a snapshot of these groups.
    pub fn new(groups: &[Stored], files: Vec<Range<u32>>) -> Arc<Self> {
        Arc::new(Self { groups: groups.iter().map(group).collect(), files })
    }

    /// Returns the groups of the large file that contains a group; empty if none does.
    pub(crate) fn file_of(&self, number: u32) -> Range<u32> {
        self.files.iter().find(|file| file.contains(&number)).cloned().unwrap_or(0..0)
    }
}

fn group(stored: &Stored) -> GroupRef {
    let mut blob = [0; 32];
    blob[..4].copy_from_slice(&stored.blob.to_le_bytes());
    let mut digest = blob;
    digest[8..16].copy_from_slice(&stored.offset.to_le_bytes());
    digest[31] = 1;
    GroupRef {
        blob: BlobId(Digest::from_bytes(blob)),
        group: Group {
            digest: GroupDigest(Digest::from_bytes(digest)),
            blob: BlobIdx(stored.blob),
            ordinal: 0,
            offset: stored.offset,
            stored_len: stored.stored_len,
            raw_len: stored.raw_len,
            owner: None,
        },
        home: None,
    }
}

/// When a snapshot is attached, planned and detached.
#[derive(Debug, Clone)]
pub struct SnapshotScript {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Its priority.
    pub urgency: Urgency,
    /// Attach time; `None`: it is never loaded, only read.
    pub attach: Option<Duration>,
    /// Plans and the times at which they are set.
    pub plans: Vec<(Duration, Plan)>,
    /// Detach time.
    pub detach: Option<Duration>,
    /// Whether touches are reported to the scheduler.
    pub touches: Told,
}

/// Whether the scheduler learns of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Reported.
    Yes,
    /// Not reported.
    No,
}

/// One step of a reader.
#[derive(Debug, Clone)]
pub struct Touch {
    /// Think time since the previous answer.
    pub think: Duration,
    /// Group numbers it needs, all at once.
    pub groups: Vec<u32>,
    /// Group numbers it will probably need next.
    pub hints: Vec<u32>,
}

/// A reader.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Index of the snapshot in the scenario.
    pub snapshot: usize,
    /// Start time.
    pub begins: Begins,
    /// Steps, in order.
    pub touches: Vec<Touch>,
    /// Whether it gives up.
    pub patience: Patience,
}

/// Start condition of a reader.
#[derive(Debug, Clone, Copy)]
pub enum Begins {
    /// At a fixed time.
    At(Duration),
    /// Once all groups of its snapshot are cached.
    WhenWhole,
}

/// How long a reader waits.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Indefinitely.
    Endless,
    /// Gives up this fraction of its waits, after at most this time.
    Some(f64, Duration),
}

/// Performance of the host. Times are drawn from half to one and a half times the given values.
#[derive(Debug, Clone)]
pub struct HostModel {
    /// Cost of verifying and decoding: per group, and rate in decoded bytes per second.
    pub decode: (Duration, f64),
    /// The same for cache inserts.
    pub insert: (Duration, f64),
    /// Duration of a cache probe.
    pub look: Duration,
    /// Periods in which the cache has no room for prefetched groups.
    pub full: Vec<Range<Duration>>,
    /// Fraction of groups that the cache rejects, as if full or failing.
    pub not_kept: f64,
    /// Fraction of groups that arrive corrupt.
    pub corrupt: f64,
}

impl Default for HostModel {
    fn default() -> Self {
        Self {
            decode: (Duration::from_micros(100), 1.0e9),
            insert: (Duration::from_micros(100), 1.5e9),
            look: Duration::from_micros(200),
            full: Vec::new(),
            not_kept: 0.0,
            corrupt: 0.0,
        }
    }
}

/// End condition of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When no events are left.
    Quiet,
    /// When the last reader finishes.
    Read,
}

/// A complete scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Seed of all random draws.
    pub seed: u64,
    /// Limits of the scheduler.
    pub limits: FetchLimits,
    /// The link.
    pub link: LinkModel,
    /// The host.
    pub host: HostModel,
    /// The snapshots.
    pub snapshots: Vec<SnapshotScript>,
    /// The readers.
    pub readers: Vec<Reader>,
    /// Groups cached at the start: snapshot index and group number.
    pub here: Vec<(usize, u32)>,
    /// End condition.
    pub until: Until,
}
