//! What can be wrong with a stored profile.

use super::codec::{ENCODED_LEN_MAX, VERSION};

/// Why bytes are no profile that can be used. Whoever wanted one can go on without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not a profile at all.
    #[error("it is no profile of inlay's: it does not begin with the format's mark")]
    NotAProfile,
    /// A layout that this program does not know.
    #[error(
        "its version {found} is not known to this inlay, which knows {VERSION}; use a newer inlay"
    )]
    Version {
        /// What the header says.
        found: u32,
    },
    /// Longer than any profile is.
    #[error("it has {len} bytes, and no profile has more than {ENCODED_LEN_MAX}")]
    TooLong {
        /// Its length in bytes.
        len: u64,
    },
    /// The bytes are not those that were written.
    #[error("it is damaged: its bytes do not have the digest that it ends with")]
    Digest,
    /// Something in it contradicts itself or the format.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The profile is of something else than its place says.
    #[error("it is {found}; the store is damaged or lies")]
    Misplaced {
        /// Of what it is.
        found: String,
    },
}
