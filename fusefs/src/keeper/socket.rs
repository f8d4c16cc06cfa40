//! The keeper's socket: messages with descriptors, in order, whole, and only among processes of one
//! user.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, openat, unlinkat};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::{Pid, geteuid};

use super::wire::{DESCRIPTORS_MAX, MESSAGE_LEN_MAX};

/// How many may stand in line to be accepted.
const BACKLOG: i32 = 16;

/// What came in one message.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Listens at `path`, where nobody else does; a socket that is left there is removed.
pub(super) fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let (dir, name) = parts(path)?;
    match unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let socket = new_socket(SocketFlags::NONBLOCK)?;
    bind(&socket, &address(&dir, name)?)?;
    chmodat(&dir, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to who listens at `path`.
pub(super) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let (dir, name) = parts(path)?;
    let socket = new_socket(SocketFlags::empty())?;
    connect(&socket, &address(&dir, name)?)?;
    allowed(&socket)?;
    Ok(socket)
}

/// The next who connects, and its process. `None` if nobody waits, or it is not to be let in.
pub(super) fn accept_from(listener: &OwnedFd) -> io::Result<Option<(OwnedFd, Pid)>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match accept_with(listener, flags) {
        Ok(socket) => socket,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match allowed(&socket) {
        Ok(pid) => Ok(Some((socket, pid))),
        Err(error) => {
            tracing::warn!(%error, "somebody else's process was turned away");
            Ok(None)
        }
    }
}

/// Sends one message.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message; `None` at the end of the connection.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<Received>> {
    let mut bytes = vec![0; MESSAGE_LEN_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::io::retry_on_intr(|| recvmsg(&socket, &mut into, &mut control, flags))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.bytes > MESSAGE_LEN_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(got.bytes);
    Ok(Some(Received { bytes, descriptors }))
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Only root's processes and this user's own are talked to.
fn allowed(socket: &OwnedFd) -> io::Result<Pid> {
    let peer = socket_peercred(socket)?;
    if peer.uid.is_root() || peer.uid == geteuid() {
        Ok(peer.pid)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// A socket's address has room for 107 bytes; the path may be longer, so its directory is named by
/// a descriptor.
fn address(dir: &OwnedFd, name: &OsStr) -> io::Result<SocketAddrUnix> {
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok(SocketAddrUnix::new(short)?)
}

fn parts(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((openat(CWD, dir, flags, Mode::empty())?, name))
}
