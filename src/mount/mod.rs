//! Mounts of snapshots on this host: served by a process each, recorded in the state directory,
//! read-only or below an overlay.

mod background;
mod error;
mod mountinfo;
mod overlay;
mod process;
mod record;
mod registry;
mod serve;
mod umount;
mod upper;
mod watch;

pub use background::{Readiness, spawn_background};
pub use error::MountError;
pub use process::ProcessId;
pub use record::{MountId, MountRecord, PathText, View};
pub use registry::Registry;
pub use serve::{Ending, Request, WantedView, serve, stop_signal};
pub use umount::{Umount, umount};
pub use upper::{Keep, UpperPlace};
