//! The keeper's socket: whole messages with descriptors, in order, restricted to processes of one
//! user and root.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, openat, unlinkat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

use super::wire::{DESCRIPTORS_MAX, MESSAGE_LEN_MAX};
use inlay_base::peer;

/// Backlog of pending connections.
const BACKLOG: i32 = 16;

/// Contents of one message.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Listens at `path`, replacing a stale socket. The caller must ensure that no other process
/// listens there.
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

/// Connects to the listener at `path`.
pub(super) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let (dir, name) = parts(path)?;
    let socket = new_socket(SocketFlags::empty())?;
    connect(&socket, &address(&dir, name)?)?;
    allowed(&socket)?;
    Ok(socket)
}

/// Accepts a connection. Returns `None` if none is pending or the peer is not allowed.
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
            tracing::warn!(%error, "rejected a connection");
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

/// Opens the process that connected `socket`. Fails with `ESRCH` if it has ended: another process
/// may hold its end of the connection, and its PID may name a third.
pub(super) fn process_of(socket: &OwnedFd, pid: Pid) -> io::Result<OwnedFd> {
    let process = match peer::pidfd(socket)? {
        Some(process) => process,
        // Before Linux 6.5. Wrong if the process ended since it connected, left its end open
        // elsewhere, and its PID was reused, all before the keeper accepted.
        None => pidfd_open(pid, PidfdFlags::empty())?,
    };
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    match poll(&mut ended, Some(&Timespec::default()))? {
        0 => Ok(process),
        _ => Err(rustix::io::Errno::SRCH.into()),
    }
}

/// Checks that the peer runs as root or as this user.
fn allowed(socket: &OwnedFd) -> io::Result<Pid> {
    let peer = peer::credentials(socket)?;
    if !peer.uid.is_root() && peer.uid != geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    peer.pid.ok_or_else(|| io::Error::other("the peer is in another PID namespace"))
}

/// A socket address holds 107 bytes, but the path may be longer, so its directory is named by a
/// descriptor.
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Connects, leaves the socket to a child, and exits; the child lives until its input ends.
    const CONNECT: &str = "import os, socket, sys\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
        s.connect(sys.argv[1])\n\
        if sys.argv[2] == 'exit' and os.fork() > 0: os._exit(0)\n\
        sys.stdin.read()";
    /// Starts a process with a given PID, which root may choose: clone3(2) with `set_tid`.
    const REUSE: &str = "import ctypes, os, signal, sys\n\
        tid = (ctypes.c_int * 1)(int(sys.argv[1]))\n\
        args = (ctypes.c_uint64 * 10)(\n\
            0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tid), 1)\n\
        made = ctypes.CDLL(None).syscall(435, args, 80)\n\
        if made != 0: print(made, flush=True)\n\
        sys.stdin.read()\n\
        if made > 0: os.waitpid(made, 0)";

    fn python(script: &str, arguments: &[&OsStr]) -> Child {
        let mut command = Command::new("python3");
        command.args(["-c", script]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn accepted(listener: &OwnedFd) -> (OwnedFd, Pid) {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1);
        accept_from(listener).unwrap().unwrap()
    }

    #[test]
    fn a_client_that_lives_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = listen_at(&path).unwrap();
        let mut client = python(CONNECT, &[path.as_os_str(), OsStr::new("stay")]);
        let (socket, pid) = accepted(&listener);
        assert_eq!(pid, Pid::from_child(&client));
        process_of(&socket, pid).unwrap();
        drop(client.stdin.take());
        client.wait().unwrap();
    }

    #[test]
    fn the_process_that_reuses_a_clients_pid_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = listen_at(&path).unwrap();
        let mut client = python(CONNECT, &[path.as_os_str(), OsStr::new("exit")]);
        let heir = client.stdin.take().unwrap();
        client.wait().unwrap();
        let (socket, pid) = accepted(&listener);
        let number = pid.as_raw_nonzero().to_string();
        let mut reuser = python(REUSE, &[OsStr::new(&number)]);
        let mut said = String::new();
        BufReader::new(reuser.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        // Only root can choose a PID, and no kernel before 6.5 tells the two apart.
        let reused = said.trim() == number;
        assert!(reused || !geteuid().is_root(), "{said}");
        if !reused || peer::pidfd(&socket).is_ok_and(|peer| peer.is_some()) {
            process_of(&socket, pid).unwrap_err();
        }
        drop(reuser.stdin.take());
        reuser.wait().unwrap();
        drop(heir);
    }
}
