//! How the kernel sees a snapshot.
//!
//! [`SnapshotFs`] answers what a filesystem is asked, from an index and a [`ContentSource`], and
//! knows nothing of FUSE. [`HostServer`] serves all snapshots of a host below FUSE mounts that a
//! [`keeper`] holds, so that they outlive it.

pub mod content;
mod control;
mod counters;
mod ended;
mod errno;
mod error;
mod fs;
mod fuse;
mod host;
mod inode;
pub mod keeper;
mod kind;
mod ledger;
mod limiter;
mod meter;
mod notify;
mod opens;
mod raw;
mod viewer;

pub use content::{ContentError, ContentSource, ReadDone, ReadNow, WholeFile};
pub use counters::{RequestCounters, RequestCounts};
pub use ended::Ended;
pub use error::{FsError, Wanted};
pub use fs::{
    APART_LEN_MIN, Answered, DirItem, DirOffset, Emit, Found, Parts, Seek, SnapshotFs, Split,
    StatFs, View, Viewer, XattrAnswer,
};
pub use host::{HostError, HostServer, OpenFiles, Opener, OpenerError, Restored, ServeOptions};
pub use inode::Slot;
pub use keeper::SOURCE;
pub use kind::ConnectionKind;
pub use ledger::LedgerError;
pub use meter::{Metered, Metering, RequestMeter};
