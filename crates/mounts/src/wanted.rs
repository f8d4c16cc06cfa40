//! The description of a mount to create.

use std::path::PathBuf;

use inlay_store::ids::SnapshotId;

use super::MountFlags;
use super::ids::Alias;
use super::path::Owner;
use super::record::Standing;
use super::upper::WantedView;

/// A handle that keeps a snapshot served until it is dropped, i.e. until nothing is mounted above
/// it.
pub type Hold = Box<dyn Send + Sync>;

/// A slot that serves a snapshot or part of it.
pub struct Layer {
    /// The slot's number.
    pub slot: u32,
    /// Its directory below the host's FUSE mounts.
    pub dir: PathBuf,
    /// Keeps it served.
    pub hold: Hold,
}

/// A mount to create.
pub struct Wanted {
    /// The snapshot's id.
    pub snapshot: SnapshotId,
    /// The layer that serves it.
    pub top: Layer,
    /// The layer that serves the rest of it, below an overlay.
    pub below: Option<Layer>,
    /// The length of the snapshot's longest path in bytes, if it is to be below an overlay.
    pub longest_path: u32,
    /// The requested view.
    pub view: WantedView,
    /// The sandbox that the mount belongs to, if any.
    pub owner: Option<String>,
    /// The owner to show for the snapshot's root directory and for all files with the same owner,
    /// in ids of the target's user namespace. `None`: unchanged.
    pub chown: Option<Owner>,
    /// The restricting mount flags.
    pub flags: MountFlags,
    /// The alias with which the layers are served for `chown`.
    pub alias: Option<Alias>,
    /// The idempotency key of the request, if any.
    pub key: Option<String>,
    /// Whether the mount survives if the daemon dies before [`Mounts::confirm`].
    pub standing: Standing,
    /// The number of the sandbox's own file about this mount.
    pub file: Option<u32>,
}

impl Wanted {
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.top).chain(&self.below)
    }
}
