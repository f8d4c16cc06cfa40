//! Mounts snapshots on this host: clones the mount of a snapshot served by the daemon and attaches
//! it where the caller wants it, read-only or below an overlay. Mounts are recorded in the state
//! directory.

mod anchor;
mod error;
pub mod features;
mod flags;
mod ids;
mod kernel;
mod make;
mod metacopy;
mod mount_id;
#[cfg(test)]
mod moves_tests;
mod namespace;
mod overlay;
mod owned;
#[cfg(test)]
mod owned_tests;
mod path;
mod process;
mod record;
mod registry;
mod sweep;
mod table;
#[cfg(test)]
mod table_tests;
mod target;
#[cfg(test)]
mod target_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod upper;
mod wanted;
mod watch;

pub use anchor::Anchor;
pub use error::MountError;
pub use flags::{MountFlag, MountFlags};
pub use ids::Alias;
pub use ids::{IdMap, IdRange, Owners, Setuid};
pub use kernel::has_statmount;
pub use mount_id::{Seen, Umount};
pub use overlay::takes_descriptors;
pub use path::{MakePath, Owner};
pub use process::name_and_fields;
pub use process::{Process, ProcessId};
pub use record::{MountRecord, PathText, Standing, View};
pub use registry::make_private_dirs;
pub use registry::{Recorded, Registry};
pub use table::Claim;
pub use table::{Mounts, Unmounted};
pub use target::Caller;
pub use target::Depth;
pub use upper::damaged_upper;
pub use upper::{Changes, Keep, UpperPlace, WantedView};
pub use wanted::{Hold, Layer, Wanted};
pub use watch::Watch;
