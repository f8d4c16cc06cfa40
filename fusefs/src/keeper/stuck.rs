//! Frees a killed server that cannot exit, because one of its threads waits for a reply to a request
//! on a mount that the server itself served.
//!
//! The kernel lets a killed thread leave such a wait only while nobody has read its request. A
//! daemon makes such requests when it resolves a path in a sandbox, mounts an overlay or copies
//! files. Its process keeps its locks and its socket until the reply comes, so that no other server
//! could take over: the keeper answers these requests with `EINTR` in its place. All other requests
//! stay unanswered, for the next server.
//!
//! Not solved: the thread may wait for another process's lookup of the same name (`d_alloc_parallel`),
//! which only a server can answer.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::process::Pid;

use super::device::Connection;
use super::refuse::{REQUEST_ROOM, Wants, answer, parse};
use crate::inflight;
use crate::notify;

/// SIGKILL in the masks of `/proc/PID/status`.
const SIGKILL_BIT: u64 = 1 << (9 - 1);
/// Offset of the thread's ID in a request's header.
const PID_AT: usize = 32;
/// Requests read from a connection at a time. All of them come again for the next server.
const REQUESTS_MAX: usize = 1 << 16;

/// Returns whether the process was killed and has not exited yet. A live process, and one that has
/// exited, are not dying.
pub(super) fn is_dying(pid: Pid) -> bool {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    fs::read_to_string(path).is_ok_and(|status| says_dying(&status))
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

/// Answers the requests of the threads of `pid` on all `connections`. No server may read requests
/// meanwhile. Returns the number of answered requests.
pub(super) fn free(pid: Pid, connections: &[Connection], ledger: &OwnedFd) -> io::Result<usize> {
    let threads = threads(pid)?;
    let recorded = inflight::unanswered(ledger)?;
    let mut answered = 0;
    if !recorded.is_empty() {
        // The server kept records because the kernel does not resend requests. They stay: a second
        // reply is harmless.
        for (kind, text) in recorded {
            let of_kind = |connection: &&Connection| connection.kind == kind;
            if let Some(connection) = connections.iter().find(of_kind) {
                answered += answer_own(&connection.device, text.bytes(), &threads)?;
            }
        }
        return Ok(answered);
    }
    let mut request = vec![0; REQUEST_ROOM];
    for connection in connections {
        if notify::resend(&connection.device).is_err() {
            continue;
        }
        // The servers' own open file description: the requests stay with it, and the next server
        // makes the kernel resend them once more. It blocks, so it is polled.
        for _ in 0..REQUESTS_MAX {
            if !is_readable(&connection.device)? {
                break;
            }
            match read(&connection.device, &mut request[..]) {
                Ok(len) => {
                    let request = request.get(..len).unwrap_or_default();
                    answered += answer_own(&connection.device, request, &threads)?;
                }
                // The caller was interrupted.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                // The connection has ended.
                Err(Errno::NODEV) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(answered)
}

fn threads(pid: Pid) -> io::Result<HashSet<u32>> {
    let mut threads = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))? {
        let name = entry?.file_name();
        threads.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(threads)
}

fn is_readable(device: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds.iter().any(|fd| fd.revents().contains(PollFlags::IN)))
}

/// Answers `request` if one of `threads` waits for it. Returns the number of answers.
fn answer_own(device: &OwnedFd, request: &[u8], threads: &HashSet<u32>) -> io::Result<usize> {
    let thread = request.get(PID_AT..).and_then(|rest| rest.first_chunk());
    let (Some(thread), Some((unique, Wants::Other))) = (thread, parse(request)) else {
        return Ok(0);
    };
    if !threads.contains(&u32::from_ne_bytes(*thread)) {
        return Ok(0);
    }
    answer(device, unique, libc::EINTR)?;
    Ok(1)
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

    #[test]
    fn only_requests_of_these_threads_are_answered() {
        let device: OwnedFd = fs::File::options().write(true).open("/dev/null").unwrap().into();
        let request = |opcode: u32, thread: u32| {
            let mut request = vec![0; 40];
            request[4..8].copy_from_slice(&opcode.to_ne_bytes());
            request[PID_AT..PID_AT + 4].copy_from_slice(&thread.to_ne_bytes());
            request
        };
        let threads = HashSet::from([7, 8]);
        for (opcode, thread, count) in [(1, 7, 1), (3, 8, 1), (1, 9, 0), (2, 7, 0), (18, 7, 0)] {
            let answered = answer_own(&device, &request(opcode, thread), &threads).unwrap();
            assert_eq!(answered, count, "{opcode} of {thread}");
        }
        assert_eq!(answer_own(&device, &request(1, 7)[..35], &threads).unwrap(), 0);
    }
}
