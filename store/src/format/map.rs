//! Maps index files into memory; all `mmap` calls of the format live here.
//!
//! An index is read in place, so that opening it costs the same for ten files and for a million,
//! and so that the kernel can evict its pages and share them between processes.

#![allow(unsafe_code)] // `Mmap::map` and `unchecked_advise` have no safe form: see SAFETY below

use std::fs::File;
use std::path::Path;

use super::error::FormatError;

/// The bytes of an index: owned, or a file mapped read-only.
#[derive(Debug)]
pub(crate) enum Backing {
    /// Heap memory, used by tests and fuzzing.
    Owned(Vec<u8>),
    /// A file in the state directory.
    Mapped(memmap2::Mmap),
}

impl Backing {
    /// Maps `file`, which was opened at `path`. `path` is for error messages.
    pub(crate) fn map(file: &File, path: &Path) -> Result<Self, FormatError> {
        let at = |source| FormatError::Io { path: path.to_owned(), source };
        if file.metadata().map_err(at)?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is valid as long as the file is neither truncated nor written. Index
        // files are written once under a temporary name, synced, and renamed to their final name;
        // nothing in this program opens them for writing afterwards, and the state directory is
        // accessible to its owner alone. Every access to the bytes is checked, so their content
        // does not matter.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(at)?;
        Ok(Self::Mapped(map))
    }

    /// Releases the resident pages of a mapped file (`MADV_DONTNEED`). The next access faults them
    /// in again. A no-op for owned bytes.
    pub(crate) fn release(&self) {
        if let Self::Mapped(map) = self {
            // SAFETY: the mapping is of a file, read-only and never written, so a dropped page is
            // read again from the file with the same bytes. References into the mapping stay valid.
            let advised = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // Best effort: only memory use depends on it.
            drop(advised);
        }
    }

    /// Returns the whole index.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}
