//! Recognizes a killed process that has not exited yet.
//!
//! A thread of a killed daemon may wait in the kernel for a reply that the daemon itself would have
//! sent, or for another process's request to it: resolving a path in a sandbox, mounting an overlay
//! and copying files make such requests. The process then keeps its locks and sockets until its
//! successor answers. None of its threads returns to user space, so the successor need not wait.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use rustix::process::Pid;

use crate::peer;

/// SIGKILL in the masks of `/proc/PID/status`.
const SIGKILL_BIT: u64 = 1 << (9 - 1);

/// Returns whether the process was killed and has not exited yet. It runs no more code, but still
/// holds its files and locks. A live process, and one that has exited, are not dying.
pub fn is_dying(pid: Pid) -> bool {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    fs::read_to_string(path).is_ok_and(|status| says_dying(&status))
}

/// Returns whether the process at the other end of a unix socket is dying. For a connected client,
/// that is the process that listens.
pub fn is_peer_dying(socket: impl AsFd) -> io::Result<bool> {
    Ok(peer::credentials(socket)?.pid.is_some_and(is_dying))
}

/// The main thread is a zombie, or has a pending SIGKILL that it does not act on.
fn says_dying(status: &str) -> bool {
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let is_killed = field("SigPnd")
        .and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .is_some_and(|mask| mask & SIGKILL_BIT != 0);
    is_killed || field("State").is_some_and(|state| state.starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dying_once_it_is_killed() {
        let status = |state: &str, pending: &str| {
            format!(
                "Name:\tinlay\nState:\t{state}\nSigPnd:\t{pending}\nShdPnd:\t0000000000000100\n"
            )
        };
        assert!(!says_dying(&status("S (sleeping)", "0000000000000000")));
        assert!(!says_dying(&status("D (disk sleep)", "0000000000004000")));
        assert!(says_dying(&status("D (disk sleep)", "0000000000000100")));
        assert!(says_dying(&status("Z (zombie)", "0000000000000000")));
        assert!(!says_dying("") && !says_dying("SigPnd:\tx\n"));
        assert!(!is_dying(rustix::process::getpid()));
    }
}
