//! What can go wrong with a mount on this host.

use std::io;
use std::path::{Path, PathBuf};

use inlay_store::ids::SnapshotId;

use super::path::Owner;

/// Why a snapshot can't be mounted, served or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is not there, or not a directory.
    #[error("the mount point {} must be an existing directory: {why}", path.display())]
    Mountpoint {
        /// Which.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// Something that is no directory, where one has to be made.
    #[error("can't make the mount point {}: {} is {what}; remove it, or mount somewhere else",
        path.display(), at.display())]
    InTheWay {
        /// The mount point.
        path: PathBuf,
        /// What is in the way.
        at: PathBuf,
        /// What that is.
        what: &'static str,
    },
    /// A directory can't be made.
    #[error("can't make the directory {} of the mount point {}: {why}; mount on a directory that \
        exists, or somewhere that can be written to", at.display(), path.display())]
    MakePath {
        /// The mount point.
        path: PathBuf,
        /// Which directory.
        at: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// Somebody renames directories at this moment.
    #[error("{} was renamed or replaced while something was being mounted on it; try again",
        .0.display())]
    Moved(PathBuf),
    /// There is no such user there.
    #[error("user {} or group {} does not exist in the user namespace of the target; name others \
        with --chown", .0.uid, .0.gid)]
    NoSuchOwner(Owner),
    /// The kernel does not map owners.
    #[error("can't show {} with other owners: {source}; it takes Linux 6.12 or later, and a daemon \
        that runs as root of the host", dir.display())]
    Owners {
        /// What is to be shown.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The process has ended.
    #[error("process {0} has ended; nothing can be mounted into its container by it any more")]
    NoProcess(u32),
    /// Mounts of this program are on it.
    #[error("{} has other mounts on it: {}; unmount these first, or unmount lazily",
        mountpoint.display(), list(on_it))]
    HasMounts {
        /// Which.
        mountpoint: PathBuf,
        /// What is on it.
        on_it: Vec<PathBuf>,
    },
    /// Somebody uses the mount.
    #[error(
        "{} is in use: end the processes that have files open or their working directory there \
         (`fuser -vm DIR` lists them), or unmount lazily",
        .0.display()
    )]
    Busy(PathBuf),
    /// The overlay above it.
    #[error("can't mount an overlay on {}: {step}: {source}{kernel}", mountpoint.display())]
    Overlay {
        /// Where.
        mountpoint: PathBuf,
        /// Which step failed.
        step: &'static str,
        /// What the system says.
        source: io::Error,
        /// What the kernel says in its own words, if it does.
        kernel: String,
    },
    /// Another mount writes there.
    #[error("the upper directory {} is used by another mount; name another with --upper",
        .0.display())]
    UpperInUse(PathBuf),
    /// It holds changes to another snapshot.
    #[error(
        "the upper directory {} holds changes to {found}, not to {wanted}; name another with \
         --upper, or mount that snapshot",
        path.display()
    )]
    UpperOfOther {
        /// Which directory.
        path: PathBuf,
        /// Whose changes it holds.
        found: String,
        /// What is being mounted.
        wanted: SnapshotId,
    },
    /// There is a mount already.
    #[error("{snapshot} is already mounted on {}; `inlay umount` it first", mountpoint.display())]
    AlreadyMounted {
        /// Where.
        mountpoint: PathBuf,
        /// What.
        snapshot: SnapshotId,
    },
    /// There is none.
    #[error("no mount on {} is recorded in {}; use the same --state as for `inlay mount`, or \
        umount(8) for mounts that are not inlay's", mountpoint.display(), registry.display())]
    NotMounted {
        /// Where one was looked for.
        mountpoint: PathBuf,
        /// Where records are.
        registry: PathBuf,
    },
    /// Something else is mounted over it.
    #[error("something that is not inlay's is mounted over {}; unmount that first", .0.display())]
    Covered(PathBuf),
    /// Two at once.
    #[error("something is being mounted on {} at this moment; try again", .0.display())]
    BeingMounted(PathBuf),
    /// A namespace without processes.
    #[error("no process is in the mount namespace that holds {} any more, so that it can't be \
        entered; the mount ends with the namespace", .0.display())]
    NobodyInside(PathBuf),
    /// A record that can't be read.
    #[error("the mount record {} is damaged ({why}); if nothing is mounted there, delete it",
        path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file, directory or system call failed.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A task panicked: a defect of this program.
    #[error("the mount has failed after a defect of this program")]
    Panicked,
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    shown.join(", ")
}

impl MountError {
    /// For `map_err`: `what` was being done to `path`.
    pub(crate) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }
}
