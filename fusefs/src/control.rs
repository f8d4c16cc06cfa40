//! What the kernel lets an administrator do with a FUSE connection from outside.

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

/// What the kernel tells of FUSE's filesystems.
const FUSE_MAGIC: FsWord = 0x6573_5546;

/// The minor number of the mounted filesystem's device; the major one is 0. Asks the kernel only
/// for what it knows: no request to the server.
pub(crate) fn device_minor(mountpoint: &Path) -> Option<u32> {
    match statx(CWD, mountpoint, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()) {
        Ok(stat) => Some(stat.stx_dev_minor),
        Err(error) => {
            tracing::warn!(%error, mountpoint = %mountpoint.display(), "no device number");
            None
        }
    }
}

/// The minor number of the filesystem that is mounted on `path`, if one is. Asks its server nothing.
pub(crate) fn mounted_minor(path: &Path) -> Option<u32> {
    let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()).ok()?;
    let is_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    // The kernel gives filesystems without a disk the major number 0.
    (is_root && stat.stx_dev_major == 0).then_some(stat.stx_dev_minor)
}

/// What becomes of a request to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It is answered.
    Answered,
    /// It fails at once: nobody holds the connection.
    Dead,
    /// It waits: somebody holds the connection, and nobody serves it.
    Waits,
}

/// Asks something of the FUSE mount at `path`, and waits for at most `limit`. Then a thread is left
/// behind that waits on, until the process ends.
pub(crate) fn ask(path: &Path, limit: Duration) -> io::Result<Asked> {
    let (sender, answer) = mpsc::sync_channel(1);
    let path = path.to_owned();
    thread::Builder::new().name("inlay-ask".into()).spawn(move || {
        // Nobody may wait for it any more.
        let _ = sender.send(statfs(&path).is_ok_and(|stat| stat.f_type == FUSE_MAGIC));
    })?;
    match answer.recv_timeout(limit) {
        Ok(true) => Ok(Asked::Answered),
        Ok(false) => Ok(Asked::Dead),
        Err(mpsc::RecvTimeoutError::Timeout) => Ok(Asked::Waits),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Whether the kernel has ended the connection behind `device`: it is mounted nowhere any more, or
/// was cut.
pub(crate) fn has_ended(device: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&device, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(_) => fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR)),
        Err(_) => false,
    }
}

/// Ends the connection to the kernel: what waits gets an error, the threads get `ENODEV`. The control
/// file is in a filesystem of its own, which need not be mounted anywhere for this.
pub(crate) fn cut_connection(minor: u32) -> io::Result<()> {
    let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&control)?;
    let root = fsmount(&control, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let abort =
        openat(&root, format!("{minor}/abort"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(abort, b"1")?;
    Ok(())
}

/// The kernel caps what a server may ask for at 128 KiB; the administrator may set more.
pub(crate) fn raise_read_ahead(minor: u32, kib: u32) {
    let control = format!("/sys/class/bdi/0:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&control, kib.to_string()) {
        tracing::info!(%error, control, "read-ahead stays as the kernel sets it");
    }
}
