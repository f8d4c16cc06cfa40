//! Inputs and outputs of the scheduler.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use inlay_store::ids::BlobId;

use crate::want::{Class, GroupRef, Key};

/// A point in time, relative to the scheduler's creation. Only the driver reads a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// Returns the time since `earlier`, or zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the moment `later` after this one.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// Identifies the background loading of one attached snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkId(pub u64);

/// Identifies one request to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Priority of a snapshot's background loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// A directory snapshot: loaded completely before any image, newest first.
    Directory,
    /// An image, or the whole root of a sandbox: first the groups likely to be needed, then the
    /// rest.
    Image,
}

/// How much of a snapshot is loaded in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Extent {
    /// Nothing.
    Nothing,
    /// The likely part: the profile, or the guess that replaces it, and the neighbours of groups
    /// that were read.
    Likely,
    /// Everything, the likely part first.
    #[default]
    All,
}

/// The first read of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// Group number.
    pub group: u32,
    /// Stored length of the group, in bytes.
    pub stored_len: u32,
    /// Groups of the large file that the group belongs to; empty if it holds small files.
    pub file: Range<u32>,
}

/// The order in which a snapshot's groups are loaded. Groups are named by their number in its
/// index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Number of groups in the snapshot. Larger numbers in `first` are ignored.
    pub groups: u32,
    /// Groups to load first, in this order. Duplicates count once.
    pub first: Vec<u32>,
    /// Whether `first` is a recording of earlier runs or a guess.
    pub known: Known,
    /// How much is loaded.
    pub extent: Extent,
}

/// Origin of a plan's first groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Known {
    /// Earlier runs read them.
    Recorded,
    /// A guess: neighbours of groups that are read come before them.
    #[default]
    Guessed,
}

/// Result of a cache probe.
#[derive(Debug, Clone, Default)]
pub struct Probed {
    /// Groups that are not cached, in the order of the probe.
    pub missing: Vec<(u32, GroupRef)>,
    /// Whether the cache has room for them.
    pub room: Room,
}

/// Whether the cache accepts prefetched groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Room {
    /// The cache accepts them.
    #[default]
    There,
    /// The cache would have to evict data others need, or its disk fails. The same groups are
    /// probed again later.
    None,
}

/// Why a request is made, for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A reader is blocked.
    Reader,
    /// A sequential reader comes near.
    Sequential,
    /// A nearby group was read.
    Beside,
    /// Position in the plan's `first` list.
    First(u32),
    /// Next in tree order.
    Traversal,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reader => f.write_str("a reader waits"),
            Self::Sequential => f.write_str("a reader reads on"),
            Self::Beside => f.write_str("its neighbour was read"),
            Self::First(place) => write!(f, "place {place} of what comes first"),
            Self::Traversal => f.write_str("it is next in the tree"),
        }
    }
}

/// One request to the store: neighbouring groups of one blob.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Identifies the request in later events.
    pub id: RequestId,
    /// Priority class.
    pub class: Class,
    /// The snapshot it is made for; `None` for demand and read-ahead.
    pub work: Option<WorkId>,
    /// Reason for the request's first group.
    pub why: Why,
    /// The blob.
    pub blob: BlobId,
    /// Byte range of the blob.
    pub range: Range<u64>,
    /// The groups in the range, sorted by offset.
    pub wants: Vec<GroupRef>,
    /// Buffer bytes, stored and decoded, held until [`super::Scheduler::release`].
    pub buffer_bytes: u64,
}

/// An action for the driver.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a request. The driver reports `arrived`, then `ended` or `failed`.
    Fetch(Request),
    /// Probe the cache for these groups. The driver reports `probed`.
    Probe {
        /// The snapshot.
        work: WorkId,
        /// Group numbers.
        groups: Vec<u32>,
        /// Priority class: the cache evicts nothing for [`Class::Rest`].
        class: Class,
    },
    /// Cancel a request. The driver reports `failed`, or the usual result if the request had
    /// already finished.
    Cancel(RequestId),
}

/// A reader's registration as a waiter of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) key: Key,
    pub(super) flight: u64,
}

impl Ticket {
    /// Returns the group's key.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// State of a group when a reader requested it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// Already demanded or in flight, for this class.
    Flying(Class),
    /// Queued for a lower class, now promoted to demand.
    Promoted(Class),
    /// Newly queued.
    Queued,
}

/// What happened to a group whose fetch did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Queued again.
    Again,
    /// Its readers get the error.
    Failed,
    /// Dropped: no reader waits for it.
    Dropped,
}

/// Progress of one snapshot's background loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct WorkProgress {
    /// Groups in the snapshot.
    pub groups: u32,
    /// Groups named to come first.
    pub first: u32,
    /// Groups probed in the cache: found there, fetched, in flight or given up.
    pub probed: u32,
    /// Of these, groups the cache already had.
    pub here: u32,
    /// Groups prefetched.
    pub fetched: u32,
    /// Their stored bytes.
    pub fetched_bytes: u64,
    /// Of these, bytes that readers have read since.
    pub used_bytes: u64,
    /// Groups given up after failed fetches.
    pub given_up: u32,
    /// Probed groups that are queued.
    pub ready: u32,
    /// Current phase.
    pub phase: Phase,
}

/// Phase of a snapshot's background loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Waiting for the plan.
    #[default]
    Preparing,
    /// Loading the groups that come first.
    First,
    /// Loading the rest.
    Rest,
    /// Paused: the plan is overdue, the starting program still reads new groups, or the store or
    /// the cache failed.
    Resting,
    /// Everything is loaded.
    Done,
}
