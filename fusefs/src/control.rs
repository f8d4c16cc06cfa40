//! Controls FUSE connections from outside: device numbers, probing, aborting, read-ahead.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, CWD, FsWord, Mode, OFlags, StatxAttributes, StatxFlags, openat, statfs, statx,
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// `f_type` of FUSE filesystems.
const FUSE_MAGIC: FsWord = 0x6573_5546;

/// Returns the minor device number of the mounted filesystem; the major number is 0. Sends no
/// request to the server.
pub(crate) fn device_minor(mountpoint: &Path) -> Option<u32> {
    match statx(CWD, mountpoint, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()) {
        Ok(stat) => Some(stat.stx_dev_minor),
        Err(error) => {
            tracing::warn!(%error, mountpoint = %mountpoint.display(), "no device number");
            None
        }
    }
}

/// Returns the minor device number of the filesystem mounted on `path`, if any. Sends no request to
/// its server.
pub(crate) fn mounted_minor(path: &Path) -> Option<u32> {
    let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()).ok()?;
    let is_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    // The kernel gives filesystems without a block device the major number 0.
    (is_root && stat.stx_dev_major == 0).then_some(stat.stx_dev_minor)
}

/// Outcome of a request to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It was answered.
    Answered,
    /// It failed at once: no process holds the connection.
    Dead,
    /// It blocks: a process holds the connection, but none serves it.
    Waits,
}

/// Sends a request to the FUSE mount at `path` and waits for at most `limit`. After a timeout, a
/// thread stays blocked until the process exits.
pub(crate) fn ask(path: &Path, limit: Duration) -> io::Result<Asked> {
    let (sender, answer) = mpsc::sync_channel(1);
    let path = path.to_owned();
    thread::Builder::new().name("inlay-ask".into()).spawn(move || {
        // The receiver is gone after a timeout.
        let _ = sender.send(statfs(&path).is_ok_and(|stat| stat.f_type == FUSE_MAGIC));
    })?;
    match answer.recv_timeout(limit) {
        Ok(true) => Ok(Asked::Answered),
        Ok(false) => Ok(Asked::Dead),
        Err(mpsc::RecvTimeoutError::Timeout) => Ok(Asked::Waits),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Returns whether the kernel has ended the connection behind `device`: it is mounted nowhere any
/// more, or was aborted.
pub(crate) fn has_ended(device: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&device, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(_) => fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR)),
        Err(_) => false,
    }
}

/// Aborts the connection: waiting requests fail, server threads get `ENODEV`. The control file is
/// in a fusectl filesystem, which need not be mounted anywhere for this.
pub(crate) fn cut_connection(minor: u32) -> io::Result<()> {
    let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&control)?;
    let root = fsmount(&control, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let abort =
        openat(&root, format!("{minor}/abort"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(abort, b"1")?;
    Ok(())
}

/// Sets the read-ahead of a mount. The kernel caps what a server may request at 128 KiB; the
/// administrator may set more.
pub(crate) fn raise_read_ahead(minor: u32, kib: u32) {
    let control = format!("/sys/class/bdi/0:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&control, kib.to_string()) {
        tracing::info!(%error, control, "can't set read-ahead; the kernel's default stays");
    }
}
