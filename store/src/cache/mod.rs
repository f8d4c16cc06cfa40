//! The host cache: decoded bytes on local disk, shared by every process that opens the directory.
//!
//! The groups of small files are one file each, named by the group's digest. A group file is
//! written under a temporary name and hard-linked to its final name: the name is the ready bit. A
//! large file is one sparse file, named by the digest of its contents, filled as its groups arrive,
//! and sealed when it is complete; the kernel can then read it directly. Only sealed files are
//! synced, because a cache may lose data: each process verifies all other files on first use, and
//! treats a failed verification as a cache miss. If the disk is full or fails, the cache stops
//! storing, but reads do not fail.

#[cfg(test)]
mod accounting_tests;
mod budget;
mod content;
#[cfg(test)]
mod content_tests;
mod contents;
#[cfg(test)]
mod crash_tests;
mod disk;
mod entry;
mod evict;
#[cfg(test)]
mod fault_disk;
#[cfg(test)]
mod fault_tests;
mod fill;
mod groups;
mod health;
mod lease;
mod open_files;
mod pins;
mod placement;
mod ranges;
mod reserved;
mod room;
mod seal;
mod staging;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod usage;
mod verify;
mod worker;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use budget::{Budget, BudgetError, Marks};
pub use content::WholeContent;
pub use entry::VERSION;
pub use evict::{Evicted, Inventory, Spare};
pub use pins::PinSet;
pub use placement::{ContentId, PIECES_MAX, Piece, Placement};
pub use stats::{CacheStats, DiskState};
pub use store::{Cache, ContentPin};
pub use verify::Verified;

/// Options of a cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheOptions {
    /// Maximum disk usage. `None` uses the budget last set for this directory, or [`Budget::Auto`].
    pub budget: Option<Budget>,
    /// Thresholds of eviction.
    pub marks: Marks,
    /// Maximum number of open group files, at least 16; half as many contents. Default 512.
    pub open_files: usize,
    /// Pause before the next write after a disk failure. Default 30 s.
    pub pause_after_failure: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            budget: None,
            marks: Marks::default(),
            open_files: 512,
            pause_after_failure: Duration::from_secs(30),
        }
    }
}

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// Cache hit: the buffer is filled.
    Hit,
    /// Cache miss: the contents of the buffer are undefined.
    Miss,
}

/// The outcome of inserting a group.
#[derive(Debug)]
pub enum Insert {
    /// The group was stored.
    Stored,
    /// The group was already cached.
    AlreadyThere,
    /// The budget is exhausted; the least recently used files are being evicted.
    Full,
    /// Writes are paused after a recent disk failure.
    Paused,
    /// The disk failed. The caller continues without the cache.
    Failed(CacheError),
}

/// An error from opening the cache or storing in it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A syscall failed.
    #[error("cache: {what} {path}: {source}", path = path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// Path of the file or directory.
        path: PathBuf,
        /// The OS error.
        source: io::Error,
    },
    /// A group is empty or larger than the format allows.
    #[error("cache: a group of {0} bytes can't be stored")]
    Size(usize),
}

impl CacheError {
    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}
