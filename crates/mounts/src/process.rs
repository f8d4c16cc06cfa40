//! Identifies processes without pid reuse: by pid and start time, or by a pidfd.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::str::SplitAsciiWhitespace;
use std::sync::Arc;
use std::time::Duration;

use inlay_base::peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A process of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// Its start time, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// Returns the current process.
    pub fn this() -> io::Result<Self> {
        let pid = std::process::id();
        let stat = std::fs::read("/proc/self/stat")?;
        match start(&stat) {
            Some(started) => Ok(Self { pid, started }),
            None => Err(io::Error::other("/proc/self/stat tells no start time of a live process")),
        }
    }

    /// Returns the process that has the pid now; `None` if there is none or it has exited.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(start(&stat).map(|started| Self { pid, started })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reports whether it is still running.
    pub fn is_alive(self) -> bool {
        std::fs::read(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| start(&stat) == Some(self.started))
    }

    /// Opens a pidfd of it; `None` if it has exited.
    pub fn hold(self) -> io::Result<Option<Process>> {
        let held = Process::hold(self.pid)?;
        Ok(held.filter(|held| held.id == self))
    }

    /// Blocks until it has exited, for at most `limit`. Returns whether it has.
    pub fn wait(self, limit: Duration) -> io::Result<bool> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(handle) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            return Ok(true);
        };
        // Check after opening the pidfd: from here on, reuse of the pid can't go unnoticed.
        if !self.is_alive() {
            return Ok(true);
        }
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut wanted = [PollFd::new(&handle, PollFlags::IN)];
        Ok(poll(&mut wanted, Some(&limit))? > 0)
    }
}

/// A process held by a pidfd. To open something by its pid safely, open it first and check
/// [`Process::is_alive`] afterwards: if it is, the pid was not reused in between.
#[derive(Debug, Clone)]
pub struct Process {
    id: ProcessId,
    handle: Arc<OwnedFd>,
}

impl Process {
    /// Opens the process that has the pid now; `None` if there is none or it has exited.
    pub fn hold(pid: u32) -> io::Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(handle) => Self::of_handle(pid, handle),
            // It is a thread, or the process does not exist.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the peer of a connected socket, as of the time it connected. `None` if it has exited
    /// or is not visible to this process.
    pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let handle = match peer::pidfd(socket) {
            Ok(Some(handle)) => handle,
            // Older kernels report only the pid.
            Ok(None) => {
                let Some(pid) = peer::credentials(socket)?.pid else { return Ok(None) };
                return match u32::try_from(pid.as_raw_nonzero().get()) {
                    Ok(pid) => Self::hold(pid),
                    Err(_) => Ok(None),
                };
            }
            // It has exited.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let path = format!("/proc/self/fdinfo/{}", handle.as_raw_fd());
        let info = std::fs::read_to_string(path)?;
        let pid =
            info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
        // -1: it has exited; 0: it is not in this pid namespace.
        match pid.map(u32::try_from) {
            Some(Ok(pid)) if pid > 0 => Self::of_handle(pid, handle),
            _ => Ok(None),
        }
    }

    fn of_handle(pid: u32, handle: OwnedFd) -> io::Result<Option<Self>> {
        let Some(id) = ProcessId::of(pid)? else { return Ok(None) };
        let process = Self { id, handle: Arc::new(handle) };
        // If it is alive after that read, the start time is its own.
        Ok(process.is_alive().then_some(process))
    }

    /// Returns its identity.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Returns its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.id.pid
    }

    /// Reports whether it has not exited.
    pub fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&*self.handle, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())).is_ok_and(|ready| ready == 0)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Parses the start time in a line of proc(5)'s `stat`: field 22. The second field is the program's
/// name in parentheses, which may contain any bytes. A zombie counts as gone.
fn start(stat: &[u8]) -> Option<u64> {
    let (_, mut fields) = name_and_fields(stat)?;
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Parses a line of proc(5)'s `stat`: returns the program's name and the fields after it, the first
/// of them the state.
pub fn name_and_fields(stat: &[u8]) -> Option<(&[u8], SplitAsciiWhitespace<'_>)> {
    let begin = stat.iter().position(|byte| *byte == b'(')?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    Some((stat.get(begin + 1..end)?, rest.split_ascii_whitespace()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn names_with_parentheses_and_spaces_do_not_confuse() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 20";
        assert_eq!(start(format!("12 (a) b) c) {fields}").as_bytes()), Some(77));
        assert_eq!(start(format!("12 (x) Z{}", &fields[1..]).as_bytes()), None);
        assert_eq!(start(b"12 (x) S"), None);
    }

    #[test]
    fn a_process_is_itself_and_no_later_one_of_its_number() {
        let this = ProcessId::this().unwrap();
        assert!(this.is_alive());
        let earlier = ProcessId { started: this.started - 1, ..this };
        assert!(!earlier.is_alive());
        assert!(earlier.wait(Duration::ZERO).unwrap());
        assert!(!this.wait(Duration::ZERO).unwrap());
    }

    #[test]
    fn a_held_process_is_no_later_one_of_its_number() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let held = Process::hold(child.id()).unwrap().unwrap();
        assert!(held.is_alive());
        assert_eq!(held.id().hold().unwrap().unwrap().id(), held.id());
        let earlier = ProcessId { started: held.id().started - 1, ..held.id() };
        assert!(earlier.hold().unwrap().is_none());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!held.is_alive());
        assert!(held.id().hold().unwrap().is_none());
    }

    #[test]
    fn the_other_end_of_a_socket_is_held() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = Process::peer(one.as_fd()).unwrap().unwrap();
        assert_eq!(peer.id(), ProcessId::this().unwrap());
    }

    #[test]
    fn the_end_of_a_process_is_waited_for() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let stat = std::fs::read(format!("/proc/{}/stat", child.id())).unwrap();
        let process = ProcessId { pid: child.id(), started: start(&stat).unwrap() };
        assert!(process.is_alive());
        drop(child.stdin.take());
        assert!(process.wait(Duration::from_mins(1)).unwrap());
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
