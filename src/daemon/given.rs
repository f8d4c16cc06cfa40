//! Descriptors that the service manager gave to this process when it started it.
#![allow(unsafe_code, reason = "descriptors that were inherited are known by their numbers only")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use inlay_fusefs::keeper::Stored;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::config;

/// The number of the first one.
const FIRST: RawFd = 3;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// A session's descriptors among those that were given; all others are closed. There are some the
/// first time only. Call it before anything else is opened.
pub fn given() -> Stored {
    if TAKEN.swap(true, Relaxed) {
        return Stored::default();
    }
    let (stored, others) = Stored::of(take(config::given_descriptors()));
    if !others.is_empty() {
        tracing::warn!(?others, "descriptors of the service manager that are of no use here");
    }
    stored
}

fn take(names: Vec<String>) -> Vec<(String, OwnedFd)> {
    let owned = |(number, name): (RawFd, String)| {
        // SAFETY: if there is no such descriptor, the call that it is borrowed for is an error.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        // It was inherited, so programs that this one starts would inherit it as well.
        fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
        // SAFETY: it is open, and nobody owns it: this program has opened nothing yet, and this is
        // done once.
        Some((name, unsafe { OwnedFd::from_raw_fd(number) }))
    };
    (FIRST..).zip(names).filter_map(owned).collect()
}
