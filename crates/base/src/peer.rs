//! Identifies the process at the other end of a unix socket, as of the time it connected.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use rustix::process::{Pid, Uid};

/// The credentials of a peer.
#[derive(Debug, Clone, Copy)]
pub struct Credentials {
    /// `None` if the process is not visible in this PID namespace. `rustix` assumes that it always
    /// is.
    pub pid: Option<Pid>,
    /// The user that the process ran as.
    pub uid: Uid,
}

/// Returns the credentials of the process that connected `socket`.
pub fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let peer = getsockopt(&socket, PeerCredentials)?;
    Ok(Credentials { pid: Pid::from_raw(peer.pid()), uid: Uid::from_raw(peer.uid()) })
}

/// Returns a pidfd of the process that connected `socket`, even if its PID was reused meanwhile.
/// Returns `None` before Linux 6.5.
///
/// # Errors
///
/// `ESRCH` or `EINVAL` if the process has exited, depending on the kernel.
pub fn pidfd(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match getsockopt(&socket, PeerPidfd) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
