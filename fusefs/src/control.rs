//! What the kernel lets an administrator do with a FUSE connection from outside.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

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
