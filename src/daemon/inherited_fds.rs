//! Receives the descriptors that the service manager passed to this process, and closes all others
//! it inherited.
#![allow(unsafe_code, reason = "descriptors that were inherited are known by their numbers only")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use inlay_base::descriptors;
use inlay_fusefs::keeper::Stored;
use rustix::io::{FdFlags, fcntl_setfd};

use super::error::DaemonError;
use crate::config;

/// Number of the first passed descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Returns the session's descriptors among those passed and closes all others. Only the first call
/// returns any. Must be called before this process opens anything else.
pub fn given() -> Result<Stored, DaemonError> {
    if TAKEN.swap(true, Relaxed) {
        return Ok(Stored::default());
    }
    let names = config::given_descriptors();
    descriptors::close_inherited(names.len())
        .map_err(DaemonError::io("close what was inherited by", "/proc/self".as_ref()))?;
    let (stored, others) = Stored::of(take(names));
    if !others.is_empty() {
        tracing::warn!(?others, "dropping unknown descriptors of the service manager");
    }
    Ok(stored)
}

fn take(names: Vec<String>) -> Vec<(String, OwnedFd)> {
    let owned = |(number, name): (RawFd, String)| {
        // SAFETY: if no such descriptor is open, the one syscall that it is borrowed for fails with
        // EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        // Programs that this one starts must not inherit it as well.
        fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
        // SAFETY: the descriptor is open, and nothing owns it: this program has opened nothing yet,
        // and this runs once.
        Some((name, unsafe { OwnedFd::from_raw_fd(number) }))
    };
    (FIRST..).zip(names).filter_map(owned).collect()
}
