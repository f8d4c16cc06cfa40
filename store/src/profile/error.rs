//! Errors of stored profiles.

use super::codec::{ENCODED_LEN_MAX, VERSION};

/// An error from reading a profile. Callers can continue without one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// The magic number is missing.
    #[error("not an inlay profile: wrong magic")]
    NotAProfile,
    /// The profile has a version that this program does not support.
    #[error(
        "its version {found} is not known to this inlay, which knows {VERSION}; use a newer inlay"
    )]
    Version {
        /// Version in the header.
        found: u32,
    },
    /// Longer than any valid profile.
    #[error("{len} bytes, more than the limit of {ENCODED_LEN_MAX}")]
    TooLong {
        /// Actual length in bytes.
        len: u64,
    },
    /// The bytes do not match the digest at their end.
    #[error("damaged: digest mismatch")]
    Digest,
    /// The profile contradicts itself or the format.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// The profile belongs to another snapshot or label than its key states.
    #[error("it is {found}; the store is damaged or lies")]
    Misplaced {
        /// The snapshot and label that it belongs to.
        found: String,
    },
}
