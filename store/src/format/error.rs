//! What can be wrong with an index or a group.

use std::io;
use std::path::PathBuf;

/// Why an index, or something that it points to, can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not an index at all.
    #[error("not an inlay index: it does not begin with the format's mark")]
    NotAnIndex,
    /// A layout that this program does not know.
    #[error(
        "index version {found} is not known to this inlay, which reads version {known}; \
         use a newer inlay"
    )]
    Version {
        /// What the header says.
        found: u32,
        /// What this code reads.
        known: u32,
    },
    /// Features that this program does not know.
    #[error(
        "the index needs features that this inlay does not know (bits {0:#x}); use a newer one"
    )]
    Features(u64),
    /// Shorter than it says, or than any index is.
    #[error("the index is cut short: {have} bytes of {want}")]
    Truncated {
        /// Bytes there are.
        have: u64,
        /// Bytes there should be.
        want: u64,
    },
    /// Something in it contradicts itself or the format.
    #[error("the index is damaged: {what} (at {at})")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Which record: its place in its section.
        at: u64,
    },
    /// An inode was asked for something that its type does not have.
    #[error("inode {inode} is not a {wanted}")]
    WrongKind {
        /// Which.
        inode: u32,
        /// What was needed.
        wanted: &'static str,
    },
    /// The bytes are not those that the id names.
    #[error("{what} does not have the digest it should have: expected {expected}, got {found}")]
    Digest {
        /// Whose bytes.
        what: String,
        /// What was promised.
        expected: String,
        /// What came.
        found: String,
    },
    /// The bytes could not be decompressed.
    #[error("{what} can't be decompressed: {why}")]
    Decode {
        /// Whose bytes.
        what: String,
        /// What the decoder says.
        why: String,
    },
    /// Larger than the format or the caller allows.
    #[error("{what} is {found}, more than the {limit} allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The local file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl FormatError {
    /// A contradiction, and the record it was found in.
    /// Something that the format does not allow, `at` some place of its kind.
    pub fn corrupt(what: &'static str, at: impl TryInto<u64>) -> Self {
        Self::Corrupt { what, at: at.try_into().unwrap_or(u64::MAX) }
    }
}
