//! Errors of indexes and groups.

use std::io;
use std::path::PathBuf;

/// An error from reading an index, or something that it refers to.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The magic number is missing.
    #[error("not an inlay index: wrong magic")]
    NotAnIndex,
    /// The index has a layout version that this program does not support.
    #[error(
        "index version {found} is not known to this inlay, which reads version {known}; \
         use a newer inlay"
    )]
    Version {
        /// Version in the header.
        found: u32,
        /// Version that this program reads.
        known: u32,
    },
    /// The index uses features that this program does not support.
    #[error(
        "the index needs features that this inlay does not know (bits {0:#x}); use a newer one"
    )]
    Features(u64),
    /// Shorter than its header states, or than a header.
    #[error("the index is truncated: {have} of {want} bytes")]
    Truncated {
        /// Actual length in bytes.
        have: u64,
        /// Expected length in bytes.
        want: u64,
    },
    /// A record contradicts another or violates the format.
    #[error("the index is damaged: {what} (at {at})")]
    Corrupt {
        /// The violation.
        what: &'static str,
        /// Position of the record in its section.
        at: u64,
    },
    /// The operation does not apply to inodes of this type.
    #[error("inode {inode} is not a {wanted}")]
    WrongKind {
        /// The inode.
        inode: u32,
        /// The required type.
        wanted: &'static str,
    },
    /// The bytes do not match their digest.
    #[error("{what} does not have the digest it should have: expected {expected}, got {found}")]
    Digest {
        /// The object that was hashed.
        what: String,
        /// Expected digest.
        expected: String,
        /// Actual digest.
        found: String,
    },
    /// The bytes could not be decompressed.
    #[error("{what} can't be decompressed: {why}")]
    Decode {
        /// The object that was being decompressed.
        what: String,
        /// Message of the decoder.
        why: String,
    },
    /// Exceeds a limit of the format or of the caller.
    #[error("{what} is {found}, more than the {limit} allowed")]
    TooLarge {
        /// The quantity that is too large.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A local file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The OS error.
        source: io::Error,
    },
}

impl FormatError {
    /// Creates a [`Self::Corrupt`] error: `what` describes the violation, `at` is the position of
    /// the record.
    pub fn corrupt(what: &'static str, at: impl TryInto<u64>) -> Self {
        Self::Corrupt { what, at: at.try_into().unwrap_or(u64::MAX) }
    }
}
