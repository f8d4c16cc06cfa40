//! What is captured: views of snapshots, where they are put together, and who may change them.

use std::fmt;
use std::path::PathBuf;

use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;

use crate::mount::Owners;

/// What a subject says when it can't do what it is asked for.
pub type SubjectError = Box<dyn std::error::Error + Send + Sync>;

/// A snapshot that a view begins with.
#[derive(Debug, Clone)]
pub struct Lower {
    /// Which one. Its record has to be in the store that the new snapshot goes to.
    pub id: SnapshotId,
    /// Its index.
    pub index: Index,
}

/// One mount: a snapshot, changes to it, or both.
#[derive(Debug, Clone)]
pub struct View {
    /// What is below; nothing for a view that began empty.
    pub lower: Option<Lower>,
    /// The upper directory of its overlay, an absolute path on this host; none if it is read-only.
    /// The overlay has the options of [`crate::mount`]'s.
    pub upper: Option<PathBuf>,
    /// As whose the mount shows what is below, if not as in its snapshot. The upper directory has the
    /// owners as they are shown.
    pub owners: Option<Owners>,
}

/// A mount of ours inside what is captured, which belongs to it.
#[derive(Debug, Clone)]
pub struct Graft {
    /// The mount point, relative to the captured directory, without `.`, `..` and links.
    pub at: PathBuf,
    /// What is mounted there.
    pub view: View,
    /// The directory of the view that is seen there, relative to the view's root; empty for the root.
    pub path: PathBuf,
}

/// Why something is not in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftOutWhy {
    /// A file system that is no snapshot: its type, as the kernel names it.
    FileSystem(String),
    /// Secrets.
    Secret,
    /// A live mount, which is a snapshot of its own.
    LiveMount,
    /// The user's pattern that it matches.
    Excluded(String),
    /// It is inside of this, which is left out.
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

/// What is taken in place of a mount that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underneath {
    /// The mount point alone: an empty directory, or an empty file.
    Empty,
    /// What the mount hides.
    Kept,
}

/// Something that is not taken into a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where, relative to the captured directory.
    pub path: PathBuf,
    /// Why.
    pub why: LeftOutWhy,
    /// What is taken in its place.
    pub underneath: Underneath,
}

/// Of what a snapshot is put together.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The mount that holds the captured directory.
    pub view: View,
    /// The captured directory, relative to the view's root, without `.`, `..` and links; empty for
    /// the root.
    pub path: PathBuf,
    /// Mounts below it that belong to it. Of two at one place the last one counts.
    pub grafts: Vec<Graft>,
    /// Mount points below it of what does not belong to it.
    pub left_out: Vec<LeftOut>,
}

/// Who is captured. Called from one thread, which may block.
pub trait Subject {
    /// Of what the snapshot is put together, as of now. Asked before the subject is frozen and again
    /// while it is.
    fn plan(&self) -> Result<Plan, SubjectError>;

    /// Stops everything that may change what is captured, until what is returned is thawed or dropped.
    /// Where nothing runs there is nothing to stop.
    fn freeze(&self) -> Result<Box<dyn Frozen + '_>, SubjectError>;

    /// The processes that may have mapped files of it, by their ids here. One that is gone meanwhile
    /// does no harm.
    fn processes(&self) -> Result<Vec<u32>, SubjectError>;
}

/// A subject that stands still. Goes on when this is dropped, for whatever reason.
pub trait Frozen {
    /// Lets it go on. An error means that it may not have stood still all the time, so that what was
    /// taken meanwhile is of no use.
    fn thaw(self: Box<Self>) -> Result<(), SubjectError>;
}
