//! System calls that no crate wraps safely: the FUSE device's controls, and a descriptor put in the
//! place of another.
#![allow(unsafe_code, reason = "ioctl(2) and dup3(2) on descriptors that others own")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::ioctl::{Setter, Updater, ioctl, opcode};

const FUSE: u8 = 229;
const CLONE: rustix::ioctl::Opcode = opcode::read::<u32>(FUSE, 0);
const BACKING_CLOSE: rustix::ioctl::Opcode = opcode::write::<u32>(FUSE, 2);

/// Puts `source` in the place of `target`, whose number stays: whoever holds it talks to `source`
/// from now on.
pub(crate) fn replace(target: BorrowedFd<'_>, source: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both numbers are of open descriptors, because both are borrowed. The owner of
    // `target` goes on owning that number, which names another open file afterwards.
    let made = unsafe { libc::dup3(source.as_raw_fd(), target.as_raw_fd(), libc::O_CLOEXEC) };
    if made < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A second descriptor of the connection behind `device`, with an open file of its own. It does not
/// block: a read without a request gives `EAGAIN`.
pub(crate) fn clone_device(device: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let made = openat(CWD, "/dev/fuse", flags, Mode::empty())?;
    let mut number = u32::try_from(device.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: FUSE_DEV_IOC_CLONE reads the 32 bits of a descriptor's number, and the number is of
    // one that is open.
    unsafe { ioctl(&made, Updater::<CLONE, u32>::new(&mut number))? };
    Ok(made)
}

/// Ends the registration of a backing file. Whoever has the file open by it keeps it.
pub(crate) fn close_backing(device: impl AsFd, id: u32) -> io::Result<()> {
    // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads the 32 bits of an id; an unknown one is an error.
    unsafe { ioctl(device, Setter::<BACKING_CLOSE, u32>::new(id))? };
    Ok(())
}

/// Answers an open with the registered backing file `id`, which stays registered.
pub(crate) fn opened_passthrough(
    reply: fuser::ReplyOpen,
    handle: fuser::FileHandle,
    flags: fuser::FopenFlags,
    id: u32,
) {
    // SAFETY: the id is of this session, because the ledger says so or this process registered it;
    // it stays open while the wrapper lives, whose drop would close it: `into_raw` prevents that.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, flags, &backing);
    backing.into_raw();
}
