//! Ensures a single writer of the ledger with a file lock that ends with the process. So a keeper
//! that has only the file can tell whether a process serves the session.
//!
//! A killed server may be unable to exit before its successor answers requests (see
//! [`inlay_base::dying`]). It writes no more, but still holds its lock. So the lock is one of a few
//! bytes of the file: its holder has the first byte that no process holds, and all other holders
//! are dying.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use inlay_base::dying::is_dying;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::io::Errno;
use rustix::process::{
    Flock, FlockOffsetType, FlockType, Pid, PidfdFlags, fcntl_getlk, pidfd_open,
};

use super::{Ledger, LedgerError};

/// Maximum attempts to open the lock holder before it exits.
const LOOKS_MAX: usize = 16;
/// The bytes that are locked: one more than servers that may be dying at the same time.
const LOCKS: u64 = 8;

impl Ledger {
    /// Makes this process the writer; fails with `Served` if another process is. The lock belongs
    /// to the process, not to the descriptor: closing *any* descriptor of the file releases it, so
    /// the process must have no other one.
    pub(crate) fn become_writer(&self) -> Result<(), LedgerError> {
        for byte in 0..LOCKS {
            if lock(&self.file, byte, libc::F_WRLCK)? {
                if writer(&self.file)?.is_none() {
                    return Ok(());
                }
                lock(&self.file, byte, libc::F_UNLCK)?;
                return Err(LedgerError::Served);
            }
            if let Some(pid) = holder(&self.file, byte)?
                && !is_dying(pid)
            {
                return Err(LedgerError::Served);
            }
        }
        Err(LedgerError::Served)
    }
}

/// Returns the process that writes the ledger in `file`, if any, with a pidfd. Never returns the
/// calling process itself, or one that is dying.
pub(crate) fn writer(file: impl AsFd) -> Result<Option<(Pid, OwnedFd)>, LedgerError> {
    for _ in 0..LOOKS_MAX {
        let Some((byte, pid)) = live_holder(&file)? else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The PID may have been reused in between.
            Ok(process) if holder(&file, byte)? == Some(pid) => return Ok(Some((pid, process))),
            Ok(_) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Err(LedgerError::Served)
}

/// Returns a process that holds one of the bytes and is not dying, with the byte.
fn live_holder(file: impl AsFd) -> Result<Option<(u64, Pid)>, LedgerError> {
    for byte in 0..LOCKS {
        if let Some(pid) = holder(&file, byte)?
            && !is_dying(pid)
        {
            return Ok(Some((byte, pid)));
        }
    }
    Ok(None)
}

/// Returns the other process that holds `byte`.
fn holder(file: impl AsFd, byte: u64) -> Result<Option<Pid>, LedgerError> {
    let wanted = Flock {
        start: byte,
        length: 1,
        offset_type: FlockOffsetType::Set,
        ..Flock::from(FlockType::WriteLock)
    };
    match fcntl_getlk(file, &wanted).map_err(io::Error::from)? {
        None => Ok(None),
        // Without a PID: the process is not visible in this PID namespace.
        Some(lock) => lock.pid.map(Some).ok_or(LedgerError::Served),
    }
}

/// Locks or unlocks `byte`. Returns false if another process holds it.
fn lock(file: impl AsFd, byte: u64, how: libc::c_int) -> Result<bool, LedgerError> {
    let range = libc::flock {
        l_type: libc::c_short::try_from(how).map_err(io::Error::other)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: libc::off_t::try_from(byte).map_err(io::Error::other)?,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file.as_fd(), FcntlArg::F_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(io::Error::from(errno).into()),
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
