//! What goes into the scheduler and what comes out of it.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use inlay_store::ids::BlobId;

use crate::want::{Class, GroupRef, Key};

/// A point in time: how long after the scheduler's beginning. Only the driver reads a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// The time since `earlier`; nothing if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `later`.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// Names what is loaded for one attached snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkId(pub u64);

/// Names one request to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What a snapshot is to those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// A directory snapshot: all of it comes before anything of an image, the newest first.
    Directory,
    /// An image, or the whole root of a sandbox: first what was wanted earlier, then the rest.
    Image,
}

/// How much of a snapshot is loaded without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Extent {
    /// Nothing.
    Nothing,
    /// What is likely: the profile, or the guess that stands for one, and what lies beside what was
    /// read.
    Likely,
    /// Everything, what is likely first.
    #[default]
    All,
}

/// A first read of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The group.
    pub group: u32,
    /// The bytes of its stored form.
    pub stored_len: u32,
    /// The groups of the large file that it belongs to; empty if it holds small files.
    pub file: Range<u32>,
}

/// In which order a snapshot's groups are loaded. Groups are named by their place in its index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// How many groups the snapshot has. Numbers from there on are ignored.
    pub groups: u32,
    /// What comes first, in this order. What is named twice counts once.
    pub first: Vec<u32>,
    /// Whether `first` is what earlier runs have read, not a guess.
    pub known: Known,
    /// How much is loaded.
    pub extent: Extent,
}

/// Where the first groups of a plan are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Known {
    /// Earlier runs have read them.
    Recorded,
    /// They are a guess: then what lies beside what is read comes even before them.
    #[default]
    Guessed,
}

/// What a look at this host's cache has shown.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// What is not here, in the order in which it was asked.
    pub missing: Vec<(u32, GroupRef)>,
    /// Whether there is room for it.
    pub room: Room,
}

/// Whether the cache takes what is loaded ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Room {
    /// It does.
    #[default]
    There,
    /// It would have to evict what others need, or its disk fails: it is asked again later.
    None,
}

/// Why a request is made, for whoever wants to understand it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A reader waits.
    Reader,
    /// A sequential reader comes near.
    Sequential,
    /// A group was read that lies shortly before it.
    Beside,
    /// It is this many places into the order in which the snapshot is to be loaded first.
    First(u32),
    /// It is next in the order of the tree.
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
    /// Names it in later events.
    pub id: RequestId,
    /// For whom it is made.
    pub class: Class,
    /// For which snapshot, unless a reader wants it.
    pub work: Option<WorkId>,
    /// Why, as far as its first group is concerned.
    pub why: Why,
    /// The object.
    pub blob: BlobId,
    /// The bytes of it.
    pub range: Range<u64>,
    /// The groups in it, sorted by offset.
    pub wants: Vec<GroupRef>,
    /// What its buffers take, stored and decoded, in bytes: until [`super::Scheduler::release`].
    pub buffer_bytes: u64,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make a request. It is answered with `arrived`, and then with `ended` or `failed`.
    Fetch(Request),
    /// See which of these groups this host has. It is answered with `looked`.
    Look {
        /// Of which snapshot.
        work: WorkId,
        /// Which groups.
        groups: Vec<u32>,
        /// For which class: the cache makes no room for the last one.
        class: Class,
    },
    /// Stop a request. It is answered with `failed` or, if that came too late, as any other.
    Cancel(RequestId),
}

/// A reader's place among those who wait for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) key: Key,
    pub(super) flight: u64,
}

impl Ticket {
    /// Which group it is about.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// What a want has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// It was on its way, for this class.
    Flying(Class),
    /// It was queued for a lower class, and is now a demand.
    Promoted(Class),
    /// It is queued.
    Queued,
}

/// What was done about a fetch that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is queued again.
    Again,
    /// Its readers get the error.
    Failed,
    /// Nobody waits for it.
    Dropped,
}

/// What has been done for one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct WorkFigures {
    /// Groups of the snapshot.
    pub groups: u32,
    /// Groups that were named to come first.
    pub first: u32,
    /// Groups that were looked at: found here, fetched, on their way or given up.
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
    /// Groups looked at that wait for their turn.
    pub ready: u32,
    /// What it is doing.
    pub phase: Phase,
}

/// What is being done for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// What comes first is not known yet.
    #[default]
    Preparing,
    /// What comes first is being loaded.
    First,
    /// The rest is being loaded.
    Rest,
    /// It rests for a while: the store or the cache does not take part.
    Resting,
    /// Nothing is left to be loaded.
    Done,
}
