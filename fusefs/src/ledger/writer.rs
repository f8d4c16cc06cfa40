//! Who writes the ledger: one process at a time, which has a lock on the file that ends with it. So a
//! keeper that knows nothing but the file can tell whether somebody serves the session.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, PidfdFlags, fcntl_getlk, pidfd_open};

use super::{Ledger, LedgerError};

/// How often the process that has the lock may have ended before it could be looked at.
const LOOKS_MAX: usize = 16;

impl Ledger {
    /// Makes this process the one that writes. The lock is the process's, not the descriptor's: it is
    /// gone when the process closes *any* descriptor of the file, so let it have this one only.
    pub(crate) fn become_writer(&self) -> Result<(), LedgerError> {
        match fcntl_lock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::ACCESS | Errno::AGAIN) => Err(LedgerError::Served),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }
}

/// The process that writes the ledger in `file`, if there is one, and a descriptor of it. This
/// process itself is never told of.
pub(crate) fn writer(file: impl AsFd) -> Result<Option<(Pid, OwnedFd)>, LedgerError> {
    for _ in 0..LOOKS_MAX {
        let Some(pid) = holder(&file)? else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The number may have been given to another process in between.
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
        // Without a number: a process that can't be seen from this one's namespace.
        Some(lock) => lock.pid.map(Some).ok_or(LedgerError::Served),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds the lock that a server would have, until it is killed or its input ends.
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
