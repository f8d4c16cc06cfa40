//! The one place that maps files into memory.
//!
//! An index is read in place, so that opening one costs the same for ten files and for a million,
//! and the kernel can drop its pages and share them between processes. That needs `mmap`.

#![allow(unsafe_code)] // `Mmap::map` and `unchecked_advise` have no safe form: see SAFETY below

use std::fs::File;
use std::path::Path;

use super::error::FormatError;

/// Bytes in memory: owned, or a file mapped read-only.
#[derive(Debug)]
pub(crate) enum Backing {
    /// From anywhere; tests and fuzzing.
    Owned(Vec<u8>),
    /// A file in the state directory.
    Mapped(memmap2::Mmap),
}

impl Backing {
    /// Maps `file`, which was opened at `path`.
    pub(crate) fn map(file: &File, path: &Path) -> Result<Self, FormatError> {
        let at = |source| FormatError::Io { path: path.to_owned(), source };
        if file.metadata().map_err(at)?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is valid as long as nobody truncates or writes the file. Index files are
        // written once, under another name, synced and renamed to their own; nothing in this
        // program opens them for writing afterwards, and the state directory is open to its owner
        // alone. Whatever the bytes are, every access to them is checked.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(at)?;
        Ok(Self::Mapped(map))
    }

    /// Gives back the memory that pages of a mapped file take in this process. They come again when
    /// they are looked at.
    pub(crate) fn release(&self) {
        if let Self::Mapped(map) = self {
            // SAFETY: the map is of a file, read-only and never written, so that pages that are
            // dropped are read again from the file with the same bytes. References into the map
            // stay valid.
            let advised = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // Nothing depends on it.
            drop(advised);
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}
