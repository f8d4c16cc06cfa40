//! Ensures a single writer of the ledger with a file lock that ends with the process. So a keeper
//! that has only the file can tell whether a process serves the session.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, PidfdFlags, fcntl_getlk, pidfd_open};

use super::{Ledger, LedgerError};

/// Maximum attempts to open the lock holder before it exits.
const LOOKS_MAX: usize = 16;

impl Ledger {
    /// Makes this process the writer; fails with `Served` if another process is. The lock belongs
    /// to the process, not to the descriptor: closing *any* descriptor of the file releases it, so
    /// the process must have no other one.
    pub(crate) fn become_writer(&self) -> Result<(), LedgerError> {
        match fcntl_lock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::ACCESS | Errno::AGAIN) => Err(LedgerError::Served),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }
}

/// Returns the process that writes the ledger in `file`, if any, with a pidfd. Never returns the
/// calling process itself.
pub(crate) fn writer(file: impl AsFd) -> Result<Option<(Pid, OwnedFd)>, LedgerError> {
    for _ in 0..LOOKS_MAX {
        let Some(pid) = holder(&file)? else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The PID may have been reused in between.
            Ok(process) if holder(&file)? == Some(pid) => return Ok(Some((pid, process))),
            Ok(_) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Err(LedgerError::Served)
}

fn holder(file: impl AsFd) -> Result<Option<Pid>, LedgerError> {
    let wanted = Flock::from(FlockType::WriteLock);
    match fcntl_getlk(file, &wanted).map_err(io::Error::from)? {
        None => Ok(None),
        // Without a PID: the process is not visible in this PID namespace.
        Some(lock) => lock.pid.map(Some).ok_or(LedgerError::Served),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds the lock like a server, until killed or at end of input.
    const HOLD: &str = "import fcntl, sys\n\
        f = open(sys.argv[1], 'r+b')\n\
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n\
        print('held', flush=True)\n\
        sys.stdin.read()";

    #[test]
    fn another_process_is_seen_while_it_lives_and_not_afterwards() {
        use std::io::Read;
        use std::os::fd::AsRawFd;
        use std::process::{Command, Stdio};

        let file = Ledger::create().unwrap();
        assert!(writer(&file).unwrap().is_none());
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut command = Command::new("python3");
        command.args(["-c", HOLD, &path]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut other = command.spawn().unwrap();
        let mut said = [0; 5];
        other.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        let (pid, _) = writer(&file).unwrap().unwrap();
        assert_eq!(pid, Pid::from_child(&other));
        let (ledger, _) = Ledger::open(file.try_clone().unwrap()).unwrap();
        assert!(matches!(ledger.become_writer(), Err(LedgerError::Served)));
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(writer(&file).unwrap().is_none());
        ledger.become_writer().unwrap();
    }
}
