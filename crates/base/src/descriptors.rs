//! Manages this process's file descriptors: closes those inherited from the caller, and raises
//! their limit.
//!
//! A daemon, keeper or monitor outlives the command that started it. It must not keep a lock or
//! pipe of that command's caller alive.
#![allow(unsafe_code, reason = "inherited descriptors are known by their numbers only")]

use std::fs;
use std::io;
use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// First descriptor after standard input, output and error.
const FIRST: RawFd = 3;

/// Closes all inherited descriptors from 3 on, except the first `passed`, which the caller takes
/// over. Must be called before the process opens any file or starts a thread.
pub fn close_inherited(passed: usize) -> io::Result<()> {
    let passed = RawFd::try_from(passed).map_err(io::Error::other)?;
    let first = FIRST.checked_add(passed).ok_or(io::ErrorKind::InvalidInput)?;
    let first = libc::c_uint::try_from(first).map_err(io::Error::other)?;
    // SAFETY: the call takes only integers. The process has opened nothing yet, so no descriptor
    // from `first` on has an owner in this program.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Kernels before 5.9, and seccomp filters that do not know the syscall.
        Some(libc::ENOSYS | libc::EPERM) => close_one_by_one(first),
        _ => Err(error),
    }
}

fn close_one_by_one(first: libc::c_uint) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        open.extend(
            number.filter(|number| libc::c_uint::try_from(*number).is_ok_and(|n| n >= first)),
        );
    }
    for number in open {
        // SAFETY: the descriptor has no owner, as above. The one that listed the directory is
        // already closed; closing its number again fails without effect.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard limit. Returns the effective limit.
///
/// Sandboxes are unaffected: their OCI configuration sets its own limit.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let now = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => now(limit.maximum),
        Err(error) => {
            tracing::warn!(%error, "can't raise the limit of open files");
            now(limit.current)
        }
    }
}
