//! Mounts of snapshots on this host: a view of a snapshot that the daemon serves, put where a caller
//! wants it, read-only or below an overlay; recorded in the state directory.

mod error;
mod kernel;
mod namespace;
mod overlay;
mod process;
mod record;
mod registry;
mod table;
mod target;
mod upper;
mod watch;

pub use error::MountError;
pub use process::ProcessId;
pub use record::{MountRecord, PathText, View};
pub use registry::Registry;
pub(crate) use registry::{make_private_dirs, write_whole};
pub use table::{Hold, Layer, Mounts, Unmounted, Wanted};
pub use target::{Caller, Seen, Umount};
pub use upper::{Changes, Keep, UpperPlace, WantedView};
pub(crate) use watch::Watch;
