//! What happens in a simulation: snapshots, readers, link, host.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use inlay_prefetch::scheduler::{Plan, Urgency};
use inlay_prefetch::{FetchLimits, GroupRef};
use inlay_store::format::{BlobIdx, Group};
use inlay_store::ids::{BlobId, Digest, GroupDigest};
use serde::{Deserialize, Serialize};

use crate::link::LinkModel;

/// Where a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// In which blob. The same number is the same blob in all snapshots.
    pub blob: u32,
    /// From which byte on.
    pub offset: u64,
    /// How many bytes it takes there.
    pub stored_len: u32,
    /// How many bytes it decodes to.
    pub raw_len: u32,
}

/// A snapshot: its groups, in the order of the tree.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// By number.
    pub groups: Vec<GroupRef>,
    /// The groups of large files that have them for themselves.
    pub files: Vec<Range<u32>>,
}

impl Snapshot {
    /// A snapshot of these groups.
    pub fn new(groups: &[Stored], files: Vec<Range<u32>>) -> Arc<Self> {
        Arc::new(Self { groups: groups.iter().map(group).collect(), files })
    }

    /// The groups of the large file to which a group belongs; none if it does not.
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
    /// Which.
    pub snapshot: Arc<Snapshot>,
    /// What it is.
    pub urgency: Urgency,
    /// When it is attached; `None`: nothing is loaded of it, it is only read.
    pub attach: Option<Duration>,
    /// When it gets which order.
    pub plans: Vec<(Duration, Plan)>,
    /// When it is detached.
    pub detach: Option<Duration>,
    /// Whether the scheduler is told of touches.
    pub touches: Told,
}

/// Whether the scheduler is told of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// One step of a reader.
#[derive(Debug, Clone)]
pub struct Touch {
    /// How long it thinks before, since it was answered last.
    pub think: Duration,
    /// The groups that it needs, by number: all of them at once.
    pub groups: Vec<u32>,
    /// The groups that it will probably need next.
    pub hints: Vec<u32>,
}

/// A reader.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Of which snapshot of the scenario.
    pub snapshot: usize,
    /// When it begins.
    pub begins: Begins,
    /// What it does.
    pub touches: Vec<Touch>,
    /// Whether it gives up.
    pub patience: Patience,
}

/// When a reader begins.
#[derive(Debug, Clone, Copy)]
pub enum Begins {
    /// At a time.
    At(Duration),
    /// As soon as all groups of its snapshot are cached.
    WhenWhole,
}

/// How long a reader waits.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// As long as it takes.
    Endless,
    /// This part of its waits is given up, after at most so long.
    Some(f64, Duration),
}

/// What the host is like. Times are drawn from the half to the one and a half of what is said here.
#[derive(Debug, Clone)]
pub struct HostModel {
    /// What verifying and decoding costs: for a group, and in decoded bytes a second.
    pub decode: (Duration, f64),
    /// The same for writing into the cache.
    pub insert: (Duration, f64),
    /// How long a look into the cache takes.
    pub look: Duration,
    /// When the cache has no room for what is loaded ahead.
    pub full: Vec<Range<Duration>>,
    /// Which part of the groups that come is not kept, as the cache is full or fails.
    pub not_kept: f64,
    /// Which part of the groups comes with wrong bytes.
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

/// When a simulation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When nothing happens any more.
    Quiet,
    /// When the last reader is done.
    Read,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What everything that is drawn follows from.
    pub seed: u64,
    /// What the scheduler may do.
    pub limits: FetchLimits,
    /// The link.
    pub link: LinkModel,
    /// The host.
    pub host: HostModel,
    /// The snapshots.
    pub snapshots: Vec<SnapshotScript>,
    /// The readers.
    pub readers: Vec<Reader>,
    /// What is cached at the beginning: groups of a snapshot.
    pub here: Vec<(usize, u32)>,
    /// When it is over.
    pub until: Until,
}
