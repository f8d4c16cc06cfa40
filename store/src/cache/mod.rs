//! The host cache: decoded groups on local disk, shared by every process that opens the directory.
//!
//! One file a group, named by the group's digest, written under another name and linked to its own:
//! the name is the ready bit. Nothing is synced, because a cache may forget; instead each file is
//! read whole and checked when a process first opens it, and what does not prove itself is removed
//! and is a miss. A disk that is full or fails makes the cache stop storing, never fail a reader.

#[cfg(test)]
mod crash_tests;
mod entry;
mod health;
mod open_files;
mod staging;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod usage;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use stats::CacheFigures;
pub use store::Cache;

use crate::units::ByteSize;

/// How a cache behaves.
#[derive(Debug, Clone, Copy)]
pub struct CacheOptions {
    /// How much disk its files may take; when that is reached nothing more is stored. `None`: as
    /// much as there is.
    pub budget: Option<ByteSize>,
    /// How many files are kept open, at least 16. Default 512.
    pub open_files: usize,
    /// How long nothing is stored after the disk failed. Default 30 s.
    pub pause_after_failure: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { budget: None, open_files: 512, pause_after_failure: Duration::from_secs(30) }
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
    /// The budget is used up.
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
}
