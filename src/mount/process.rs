//! Processes by an identity that is not used again: the pid and when it started.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A process of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's clock ticks since it booted.
    pub started: u64,
}

impl ProcessId {
    /// The process that runs this code.
    pub fn this() -> io::Result<Self> {
        let pid = std::process::id();
        let stat = std::fs::read("/proc/self/stat")?;
        match start(&stat) {
            Some(started) => Ok(Self { pid, started }),
            None => Err(io::Error::other("/proc/self/stat is not as proc(5) has it")),
        }
    }

    /// The process that has the number `pid` now; `None` if there is none, or it has ended.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(start(&stat).map(|started| Self { pid, started })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it runs.
    pub fn is_alive(self) -> bool {
        std::fs::read(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| start(&stat) == Some(self.started))
    }

    /// Blocks until it has ended, but not longer than `limit`. Returns whether it has.
    pub fn wait(self, limit: Duration) -> io::Result<bool> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(handle) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            return Ok(true);
        };
        // Only now, the number can't pass to another process unseen.
        if !self.is_alive() {
            return Ok(true);
        }
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut wanted = [PollFd::new(&handle, PollFlags::IN)];
        Ok(poll(&mut wanted, Some(&limit))? > 0)
    }
}

/// The start time in a line of proc(5)'s `stat`: field 22. The second field is the program's name in
/// parentheses, whatever is in it. A process that has ended but was not reaped counts as gone.
fn start(stat: &[u8]) -> Option<u64> {
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
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
