//! The host cache: decoded bytes on local disk, shared by every process that opens the directory.
//!
//! Small files' groups are one file each, named by the group's digest, written under another name and
//! linked to its own: the name is the ready bit. A large file is one sparse file, named by the digest
//! of its contents, filled as its groups come and sealed when it is whole; the kernel can then read it
//! itself. Only what is sealed is synced, because a cache may forget: all else is checked when a process first
//! uses it, and what does not prove itself is a miss. A disk that is full or fails makes the cache
//! stop storing, never fail a reader.

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
pub use evict::{Evicted, Inventory, Spare};
pub use pins::PinSet;
pub use placement::{ContentId, PIECES_MAX, Piece, Placement};
pub use stats::{CacheFigures, DiskState};
pub use store::{Cache, ContentPin};
pub use verify::Verified;

/// How a cache behaves.
#[derive(Debug, Clone, Copy)]
pub struct CacheOptions {
    /// How much disk its files may take. `None`: what was last said of this directory, or
    /// [`Budget::Auto`].
    pub budget: Option<Budget>,
    /// Where eviction begins and ends.
    pub marks: Marks,
    /// How many files of groups are kept open, at least 16, and half as many contents. Default 512.
    pub open_files: usize,
    /// How long nothing is stored after the disk failed. Default 30 s.
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

/// What the cache has to say to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The buffer is filled.
    Hit,
    /// The cache does not have these bytes; the buffer's contents mean nothing.
    Miss,
}

/// What became of a group that was given to the cache.
#[derive(Debug)]
pub enum Insert {
    /// It is there now.
    Stored,
    /// It was there already.
    AlreadyThere,
    /// The budget is used up; what was used longest ago is being evicted.
    Full,
    /// Nothing is stored for a while, because the disk failed a short time ago.
    Paused,
    /// The disk failed now. The caller goes on without the cache.
    Failed(CacheError),
}

/// Why the cache can't be opened or can't store.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refused something.
    #[error("cache: {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
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
