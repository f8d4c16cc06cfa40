//! The interface to a subject of a capture: the mounts it consists of, and how to freeze it.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;

use inlay_mounts::Owners;

/// Why a subject can't fulfil a request.
pub type SubjectError = Box<dyn std::error::Error + Send + Sync>;

/// The lower snapshot of a view.
#[derive(Debug, Clone)]
pub struct Lower {
    /// Its id. Its record must be in the store that the new snapshot goes to.
    pub id: SnapshotId,
    /// Its index.
    pub index: Index,
}

/// One mount: a snapshot, changes to it, or both.
#[derive(Debug, Clone)]
pub struct View {
    /// The lower snapshot; `None` for a view that began empty.
    pub lower: Option<Lower>,
    /// The upper directory of its overlay, an absolute path on this host; `None` if it is
    /// read-only. The overlay has the options used by [`inlay_mounts`].
    pub upper: Option<PathBuf>,
    /// How the mount maps the owners of the lower snapshot, if it does. Owners in the upper
    /// directory are already mapped.
    pub owners: Option<Owners>,
}

/// A mount of inlay inside the captured directory that is part of it.
#[derive(Debug, Clone)]
pub struct Graft {
    /// The mount point, relative to the captured directory, without `.`, `..` and symlinks.
    pub at: PathBuf,
    /// The mount.
    pub view: View,
    /// The directory of the view that is mounted, relative to the view's root; empty for the root.
    pub path: PathBuf,
}

/// Why something is not in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftOutWhy {
    /// A foreign filesystem: its type, as named by the kernel.
    FileSystem(String),
    /// Secrets.
    Secret,
    /// A live mount, which is captured separately.
    LiveMount,
    /// It matches this pattern of the user's.
    Excluded(String),
    /// It is inside this path, which is left out.
    Inside(PathBuf),
}

impl fmt::Display for LeftOutWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileSystem(kind) => write!(f, "another file system ({kind}) is mounted there"),
            Self::Secret => write!(f, "it holds secrets"),
            Self::LiveMount => write!(f, "it is a live mount, which has a snapshot of its own"),
            Self::Inside(path) => write!(f, "it is inside of {}", path.display()),
            Self::Excluded(pattern) => write!(f, "it matches the excluded pattern '{pattern}'"),
        }
    }
}

/// What replaces a mount that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underneath {
    /// The mount point alone: an empty directory or file.
    Empty,
    /// The content hidden by the mount.
    Kept,
}

/// A path left out of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The path, relative to the captured directory.
    pub path: PathBuf,
    /// The reason.
    pub why: LeftOutWhy,
    /// What replaces it.
    pub underneath: Underneath,
}

/// The parts that a snapshot is built from.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The mount that contains the captured directory.
    pub view: View,
    /// The captured directory, relative to the view's root, without `.`, `..` and symlinks; empty
    /// for the root.
    pub path: PathBuf,
    /// Mounts below it that are part of it. Of two at the same mount point, the last one wins.
    pub grafts: Vec<Graft>,
    /// Mount points below it that are not part of it.
    pub left_out: Vec<LeftOut>,
}

/// The subject of a capture. All methods are called from one thread and may block.
pub trait Subject {
    /// Returns the current plan. Called before the subject is frozen, and again while it is.
    fn plan(&self) -> Result<Plan, SubjectError>;

    /// Stops everything that may change the captured directory until the result is thawed or
    /// dropped. A no-op where nothing runs.
    fn freeze(&self) -> Result<Box<dyn Frozen + '_>, SubjectError>;

    /// Returns the processes that may have mapped its files, by their pids in this namespace. They
    /// may exit at any time.
    fn processes(&self) -> Result<Vec<u32>, SubjectError>;
}

/// A frozen subject. Dropping it thaws the subject.
pub trait Frozen {
    /// Returns when it thaws on its own, if it does.
    fn until(&self) -> Option<Instant>;

    /// Thaws it.
    fn thaw(self: Box<Self>) -> Result<Thawed, SubjectError>;
}

/// The outcome of a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawed {
    /// Whether the freeze held.
    pub stood: Stood,
    /// The total time frozen for this capture so far, including failed attempts.
    pub frozen: Duration,
}

/// Whether a freeze held until it was thawed. If not, everything read under it is worthless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stood {
    /// It held.
    Throughout,
    /// It did not: the subject has ended, or another program thawed it.
    Interrupted,
    /// It reached its time limit.
    TooLong,
}
