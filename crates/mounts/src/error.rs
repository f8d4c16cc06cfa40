//! The errors of mounts on this host.

use std::io;
use std::path::{Path, PathBuf};

use inlay_base::record::RecordError;
use inlay_store::ids::SnapshotId;

use super::path::Owner;

/// Why a snapshot can't be mounted, served or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point does not exist or is not a directory.
    #[error("the mount point {} must be an existing directory: {why}", path.display())]
    Mountpoint {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        why: io::Error,
    },
    /// An object that is not a directory is where a directory must be created.
    #[error("can't create the mount point {}: {} is {what}; remove it, or mount elsewhere",
        path.display(), at.display())]
    InTheWay {
        /// The mount point.
        path: PathBuf,
        /// The object in the way.
        at: PathBuf,
        /// The kind of that object.
        what: &'static str,
    },
    /// A directory can't be created.
    #[error("can't make the directory {} of the mount point {}: {why}; mount on a directory that \
        exists, or somewhere that can be written to", at.display(), path.display())]
    MakePath {
        /// The mount point.
        path: PathBuf,
        /// The directory.
        at: PathBuf,
        /// The cause.
        why: io::Error,
    },
    /// The mount point is the root directory.
    #[error("can't mount on {}: it is the root directory, and processes would go on with the one that \
        they have; mount on a directory in it, or make a sandbox whose root is the snapshot with \
        `inlay sandbox create`", .0.display())]
    OnRoot(PathBuf),
    /// Directories on the path were renamed concurrently.
    #[error("{} was renamed or replaced while something was being mounted on it; try again",
        .0.display())]
    Moved(PathBuf),
    /// The owner does not exist in the target's user namespace.
    #[error("user {} or group {} does not exist in the user namespace of the target; name others \
        with --chown", .0.uid, .0.gid)]
    NoSuchOwner(Owner),
    /// The kernel can't create an idmapped mount.
    #[error("can't show {} with other owners: {source}; it takes Linux 6.12 or later, and a daemon \
        that runs as root of the host", dir.display())]
    Owners {
        /// The directory to show.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The calling process has exited.
    #[error("process {0} has ended; nothing can be mounted into its container by it any more")]
    NoProcess(u32),
    /// Other mounts of this program are on it.
    #[error("{} has other mounts on it: {}; unmount these first, or unmount lazily",
        mountpoint.display(), list(on_it))]
    HasMounts {
        /// The mount point.
        mountpoint: PathBuf,
        /// The mount points on it.
        on_it: Vec<PathBuf>,
    },
    /// The mount is in use.
    #[error(
        "{} is in use: end the processes that have files open or their working directory there \
         (`fuser -vm DIR` lists them), or unmount lazily",
        .0.display()
    )]
    Busy(PathBuf),
    /// The overlay can't be created.
    #[error("can't mount an overlay on {}: {step}: {source}{kernel}", mountpoint.display())]
    Overlay {
        /// The mount point.
        mountpoint: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// The cause.
        source: io::Error,
        /// The kernel's own message, if any.
        kernel: String,
    },
    /// Another mount uses the upper directory.
    #[error("the upper directory {} is used by another mount; name another with --upper",
        .0.display())]
    UpperInUse(PathBuf),
    /// The upper directory holds changes to another snapshot.
    #[error(
        "the upper directory {} holds changes to {found}, not to {wanted}; name another with \
         --upper, or mount that snapshot",
        path.display()
    )]
    UpperOfOther {
        /// The upper directory.
        path: PathBuf,
        /// The snapshot its changes were made to.
        found: SnapshotId,
        /// The snapshot to mount.
        wanted: SnapshotId,
    },
    /// The mount point is already taken.
    #[error("{snapshot} is already mounted on {}; `inlay umount` it first", mountpoint.display())]
    AlreadyMounted {
        /// The mount point.
        mountpoint: PathBuf,
        /// The snapshot mounted there.
        snapshot: SnapshotId,
    },
    /// Nothing is mounted there.
    #[error("no mount on {} is recorded in {}; use the same --state as for `inlay mount`, or \
        umount(8) for mounts that are not inlay's", mountpoint.display(), registry.display())]
    NotMounted {
        /// The mount point.
        mountpoint: PathBuf,
        /// The directory of the records.
        registry: PathBuf,
    },
    /// A foreign mount covers it.
    #[error("a mount that is not inlay's covers {}; unmount it first", .0.display())]
    Covered(PathBuf),
    /// Another mount is being created there concurrently.
    #[error("another mount on {} is in progress; try again", .0.display())]
    BeingMounted(PathBuf),
    /// The mount namespace has no process left through which to enter it.
    #[error("no process is in the mount namespace that holds {} any more, so that it can't be \
        entered; the mount ends with the namespace", .0.display())]
    NobodyInside(PathBuf),
    /// The record of the snapshot that an upper directory belongs to is damaged.
    #[error(
        "{0}. The changes are kept. Write the id of the snapshot that they were made to into it, or \
        name another directory with --upper"
    )]
    UpperRecord(RecordError),
    /// A file operation or syscall failed.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb phrase.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A thread panicked: a bug in this program.
    #[error("the mount panicked; this is a bug, see the log")]
    Panicked,
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    shown.join(", ")
}

impl MountError {
    /// For `map_err`: `what` was attempted on `path`.
    pub(crate) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }
}
