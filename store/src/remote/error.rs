//! Errors of a store.

use std::time::Duration;

use super::failure::Failure;
use super::records::RecordError;
use super::retry::Operation;
use crate::profile::ProfileError;

/// An error from opening a store, or from reading or writing an object in it.
///
/// Objects are identified by their full name: the URL of the store and the path in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The URL does not identify a supported store.
    #[error("'{url}' is not a store: {reason}; use a directory, s3://, gs://, az:// or https://")]
    Url {
        /// The URL, without a password.
        url: String,
        /// The problem.
        reason: String,
    },
    /// The settings of the store are invalid or inconsistent.
    #[error("can't open the store {store}: {reason}")]
    Open {
        /// URL of the store.
        store: String,
        /// The problem.
        reason: String,
    },
    /// The connection would be unencrypted, so that anyone on the network could read and change its
    /// bytes.
    #[error(
        "{endpoint} is plain HTTP to another machine: everybody on the way can read and change what \
         passes; use https://, or allow plain HTTP in the settings"
    )]
    PlainHttp {
        /// The server.
        endpoint: String,
    },
    /// A write to a read-only store.
    #[error("can't write {object}: this store is read-only; name one that is not")]
    ReadOnly {
        /// The object.
        object: String,
    },
    /// The object does not exist. Unlike other failed reads, this is certain.
    #[error("can't {operation} {object}: it is not in the store; {}", Failure::NotFound.advice())]
    NotFound {
        /// The operation.
        operation: Operation,
        /// The object.
        object: String,
    },
    /// The retry budget is exhausted, or a retry would not help.
    #[error(
        "can't {operation} {object}: {cause} (attempts: {attempts}, in {elapsed:.1?}); {}",
        cause.advice()
    )]
    Failed {
        /// The operation.
        operation: Operation,
        /// The object.
        object: String,
        /// Number of attempts.
        attempts: u32,
        /// Total time.
        elapsed: Duration,
        /// Error of the last attempt.
        cause: Failure,
    },
    /// The object is longer than any valid one.
    #[error("{object} has {len} bytes, more than the {len_max} that it may have; it is damaged")]
    TooLong {
        /// The object.
        object: String,
        /// Its length, in bytes.
        len: u64,
        /// The maximum length that the caller accepts, in bytes.
        len_max: u64,
    },
    /// A listing exceeds the limit.
    #[error("{object} holds more than {max} objects; is this a store of inlay's?")]
    TooMany {
        /// The directory in the store.
        object: String,
        /// The limit.
        max: usize,
    },
    /// A record is unusable.
    #[error("can't use {object}: {reason}")]
    Record {
        /// The object.
        object: String,
        /// The problem.
        reason: RecordError,
    },
    /// A profile is unusable. Only prefetching needs profiles: callers can continue without one.
    #[error(
        "can't use {object}: {reason}; only the order of fetching needs it, so it can be dropped"
    )]
    Profile {
        /// The object.
        object: String,
        /// The problem.
        reason: ProfileError,
    },
    /// Concurrent writers kept changing the object.
    #[error("can't write {object}: others changed it {attempts} times meanwhile; try again")]
    Contended {
        /// The object.
        object: String,
        /// Number of attempts.
        attempts: u32,
    },
}

impl StoreError {
    /// Returns whether only this object is damaged or unreadable, so that others may be intact.
    pub fn is_of_one_object(&self) -> bool {
        match self {
            Self::TooLong { .. } | Self::Record { .. } | Self::Profile { .. } => true,
            Self::Failed { cause, .. } => matches!(
                cause,
                Failure::NotAFile(_)
                    | Failure::Disk(_)
                    | Failure::Truncated(_)
                    | Failure::Short { .. }
                    | Failure::Long(_)
            ),
            _ => false,
        }
    }

    /// Returns whether the object exists but is damaged, as opposed to missing, of a newer version,
    /// or temporarily unavailable. Writing the object again repairs it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Record { reason, .. } => !matches!(reason, RecordError::Version { .. }),
            Self::TooLong { .. } => true,
            Self::Failed { cause, .. } => match cause {
                Failure::NotAFile(_)
                | Failure::Truncated(_)
                | Failure::Short { .. }
                | Failure::Long(_) => true,
                // The range starts past the end of the object.
                Failure::Answer(answer) => answer.status == 416,
                _ => false,
            },
            _ => false,
        }
    }

    /// Returns whether the object certainly does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_object_is_damage_of_one_object() {
        let failed = |cause| StoreError::Failed {
            operation: Operation::Get,
            object: "blobs/x".to_owned(),
            attempts: 1,
            elapsed: Duration::ZERO,
            cause,
        };
        assert!(failed(Failure::Truncated(3)).is_of_one_object());
        assert!(failed(Failure::Truncated(3)).is_damage());
        assert!(!failed(Failure::NotFound).is_of_one_object());
    }
}
