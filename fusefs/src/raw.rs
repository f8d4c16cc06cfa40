//! Wraps syscalls that no crate wraps safely: ioctls of the FUSE device and replacing a descriptor.
#![allow(unsafe_code, reason = "ioctl(2) and dup3(2) on others' descriptors")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::ioctl::{Setter, Updater, ioctl, opcode};

const FUSE: u8 = 229;
const CLONE: rustix::ioctl::Opcode = opcode::read::<u32>(FUSE, 0);
const BACKING_CLOSE: rustix::ioctl::Opcode = opcode::write::<u32>(FUSE, 2);

/// Replaces the open file behind `target` with that behind `source`. The descriptor number stays
/// the same, so its owner uses `source` from now on.
pub(crate) fn replace(target: BorrowedFd<'_>, source: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are borrowed, so they are open. The owner of `target` keeps owning
    // the descriptor, which refers to another open file afterwards.
    let made = unsafe { libc::dup3(source.as_raw_fd(), target.as_raw_fd(), libc::O_CLOEXEC) };
    if made < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns a second descriptor of the connection behind `device`, with its own open file
/// description. It is non-blocking: a read without a pending request fails with `EAGAIN`.
pub(crate) fn clone_device(device: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let made = openat(CWD, "/dev/fuse", flags, Mode::empty())?;
    let mut number = u32::try_from(device.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: FUSE_DEV_IOC_CLONE reads a 32-bit descriptor number, and `number` is an open
    // descriptor.
    unsafe { ioctl(&made, Updater::<CLONE, u32>::new(&mut number))? };
    Ok(made)
}

/// Closes the registration of a backing file. Files already opened with it are unaffected.
pub(crate) fn close_backing(device: impl AsFd, id: u32) -> io::Result<()> {
    // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads a 32-bit ID; an unknown one is an error.
    unsafe { ioctl(device, Setter::<BACKING_CLOSE, u32>::new(id))? };
    Ok(())
}

/// Replies to an open with the backing file `id`, which stays registered.
pub(crate) fn opened_passthrough(
    reply: fuser::ReplyOpen,
    handle: fuser::FileHandle,
    flags: fuser::FopenFlags,
    id: u32,
) {
    // SAFETY: the ID belongs to this session, according to the ledger or because this process
    // registered it. It stays open while the wrapper lives; dropping the wrapper would close it,
    // which `into_raw` prevents.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, flags, &backing);
    backing.into_raw();
}
