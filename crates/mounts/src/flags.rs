//! Mount flags that restrict a mount's files regardless of their modes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::kernel;

/// A restricting option of mount(8).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum MountFlag {
    /// Setuid and setgid bits and file capabilities are ignored
    Nosuid,
    /// Device nodes can't be opened
    Nodev,
    /// Programs can't be executed
    Noexec,
}

/// The flags of one mount.
pub type MountFlags = BTreeSet<MountFlag>;

impl MountFlag {
    fn attribute(self) -> u64 {
        match self {
            Self::Nosuid => libc::MOUNT_ATTR_NOSUID,
            Self::Nodev => libc::MOUNT_ATTR_NODEV,
            Self::Noexec => libc::MOUNT_ATTR_NOEXEC,
        }
    }
}

/// Sets `flags` on `tree`, a detached mount.
pub(super) fn set(tree: &OwnedFd, flags: &MountFlags) -> io::Result<()> {
    let attributes = flags.iter().fold(0, |all, flag| all | flag.attribute());
    if attributes == 0 { Ok(()) } else { kernel::set_attributes(tree.as_fd(), attributes, 0) }
}
