//! Locks on cache files (`flock`), visible to other processes and released by the kernel when their
//! holders exit.
//!
//! A process that has a cache file open holds a shared lock; eviction needs an exclusive one. The
//! lock belongs to the open file description: a file that the kernel reads in passthrough stays
//! locked after the process that opened it exits.

use std::fs::{File, TryLockError};
use std::io;

/// Takes a shared lock, which marks the file as in use. Returns false if the file is being evicted.
pub(super) fn share(file: &File) -> io::Result<bool> {
    outcome(file.try_lock_shared())
}

/// Takes an exclusive lock. Returns false if the file is in use.
pub(super) fn own(file: &File) -> io::Result<bool> {
    outcome(file.try_lock())
}

fn outcome(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
