//! How the kernel sees a snapshot.
//!
//! [`SnapshotFs`] answers what a filesystem is asked, from an index and a [`ContentSource`], and
//! knows nothing of FUSE. [`Mount`] puts one at a directory and serves it.

pub mod content;
mod counters;
mod ended;
mod errno;
mod error;
mod fs;
mod fuse;
mod inode;
mod limiter;
mod session;

pub use content::{ContentError, ContentSource, ReadDone, ReadNow};
pub use counters::{RequestCounters, RequestCounts};
pub use ended::Ended;
pub use error::{FsError, MountError, Wanted};
pub use fs::{
    Answered, DirItem, DirOffset, Emit, Found, Seek, SnapshotFs, StatFs, Viewer, XattrAnswer,
};
pub use inode::Slot;
pub use session::{IfBusy, Mount, MountOptions, Privileges, SOURCE};
