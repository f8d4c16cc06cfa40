//! Serves snapshots to the kernel over FUSE.
//!
//! [`SnapshotFs`] implements filesystem operations on top of an index and a [`ContentSource`] and
//! knows nothing of FUSE. [`HostServer`] serves all snapshots of a host below FUSE mounts held by a
//! [`keeper`] process, so that the mounts outlive the server.

pub mod content;
mod control;
mod counters;
mod errno;
mod error;
mod features;
mod fs;
mod fuse;
mod host;
mod inflight;
mod inode;
pub mod keeper;
mod kind;
mod ledger;
mod limiter;
mod meter;
mod notify;
mod numbers;
mod opens;
mod raw;
mod unmounted;
mod viewer;

pub use content::{ContentError, ContentSource, ReadDone, ReadNow, WholeFile};
pub use counters::{RequestCounters, RequestCounts};
pub use error::{FsError, Wanted};
pub use features::{FuseFeature, FuseFeatures, probe as probe_features};
pub use fs::{
    APART_LEN_MIN, Answered, DirItem, DirOffset, Emit, Findings, Found, OwnerAlias, Parts,
    Renumber, Seek, SnapshotFs, Split, StatFs, View, Viewer, XattrAnswer,
};
pub use host::{HostError, HostServer, OpenFiles, Opener, OpenerError, Restored, ServeOptions};
pub use inode::Slot;
pub use keeper::SOURCE;
pub use kind::ConnectionKind;
pub use ledger::{LedgerError, VERSION as LEDGER_VERSION};
pub use meter::{Metered, Metering, RequestMeter};
pub use unmounted::Ended;
