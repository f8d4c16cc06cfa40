//! Mounts of snapshots on this host: a view of a snapshot that the daemon serves, put where a caller
//! wants it, read-only or below an overlay; recorded in the state directory.

mod error;
mod ids;
mod kernel;
mod make;
mod namespace;
mod overlay;
mod owned;
mod path;
mod process;
mod record;
mod registry;
mod table;
mod target;
#[cfg(test)]
mod target_tests;
#[cfg(test)]
pub(crate) mod testing;
mod upper;
mod watch;

pub use error::MountError;
pub use ids::{IdMap, IdRange, Owners, Setuid};
pub use path::{MakePath, Owner};
pub use process::ProcessId;
pub use record::{MountRecord, PathText, Standing, View};
pub use registry::Registry;
pub(crate) use registry::{make_private_dirs, write_whole};
pub(crate) use table::Claim;
pub use table::{Hold, Layer, Mounts, Unmounted, Wanted};
pub use target::{Caller, Seen, Umount};
pub use upper::{Changes, Keep, UpperPlace, WantedView};
pub(crate) use watch::Watch;
