//! Locks on cache files, which the kernel drops with their holders, and which other processes see.
//!
//! Whoever has a cache file open holds it shared; whoever evicts it must have it alone. The lock
//! belongs to the open file: a file that the kernel itself reads stays locked when the process that
//! opened it is gone.

use std::fs::{File, TryLockError};
use std::io;

/// Says that this file is in use. False if it is being evicted.
pub(super) fn share(file: &File) -> io::Result<bool> {
    outcome(file.try_lock_shared())
}

/// Takes a file alone. False if it is in use.
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
