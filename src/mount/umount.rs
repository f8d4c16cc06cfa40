//! Ends a mount that another process serves.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::error::MountError;
use super::mountinfo;
use super::registry::Registry;

/// How often a mount that is in use is tried again, and how long after each try.
///
/// Whoever has just closed a file may not be seen to have done so: another thread of that program
/// may be starting a process, which holds a copy of the file for a moment.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// What to do about a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Umount {
    /// Leave it and say so. Otherwise wait until the process that serves it has ended.
    IfFree,
    /// Take it out of the tree; it ends when its last user does.
    Lazily,
}

/// Unmounts what is mounted on `mountpoint` according to `registry`, and waits at most `limit` for
/// the process that serves it to end. A mount whose process has died is cleared away.
pub fn umount(
    registry: &Registry,
    mountpoint: &Path,
    how: Umount,
    limit: Duration,
) -> Result<(), MountError> {
    let mountpoint = locate(mountpoint);
    let Some(record) = registry.find(&mountpoint)? else {
        return Err(MountError::NotMounted { mountpoint, registry: registry.dir().to_owned() });
    };
    if !record.server.is_alive() {
        return registry.sweep().map(drop);
    }
    if mountinfo::top(&mountpoint)?.is_some_and(|top| !top.is_ours()) {
        return Err(MountError::Covered(mountpoint));
    }
    let flags = match how {
        Umount::IfFree => UnmountFlags::NOFOLLOW,
        Umount::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    // Its process sees that it is gone and clears up the rest: below an overlay, the snapshot's own
    // mount.
    match unmount_patiently(&mountpoint, flags) {
        // Unmounted by somebody else; what is left to do is to wait.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(Errno::BUSY) => return Err(inlay_fusefs::MountError::Busy(mountpoint).into()),
        Err(errno) => return Err(MountError::io("unmount", &mountpoint)(errno)),
    }
    if how == Umount::Lazily {
        return Ok(());
    }
    let ended = record
        .server
        .wait(limit)
        .map_err(MountError::io("wait for the process that serves", &mountpoint))?;
    if ended {
        Ok(())
    } else {
        Err(MountError::ServerLives { mountpoint, pid: record.server.pid, limit })
    }
}

fn unmount_patiently(mountpoint: &Path, flags: UnmountFlags) -> Result<(), Errno> {
    for _ in 0..TRIES {
        match unmount(mountpoint, flags) {
            Err(Errno::BUSY) => thread::sleep(PAUSE),
            other => return other,
        }
    }
    unmount(mountpoint, flags)
}

/// The absolute path without symbolic links. A mount whose server has died can't be looked at, but
/// the directory that it is in can.
fn locate(mountpoint: &Path) -> PathBuf {
    mountpoint
        .canonicalize()
        .ok()
        .or_else(|| Some(mountpoint.parent()?.canonicalize().ok()?.join(mountpoint.file_name()?)))
        .or_else(|| {
            // A name alone: its parent is "".
            Some(std::env::current_dir().ok()?.join(mountpoint.file_name()?))
        })
        .unwrap_or_else(|| mountpoint.to_owned())
}
