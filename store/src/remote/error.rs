//! Why the store could not do what it was asked for.

use std::time::Duration;

use super::failure::Failure;
use super::records::RecordError;
use super::retry::Operation;
use crate::profile::ProfileError;

/// Why a store can't be opened, or why something of it can't be read or written.
///
/// An object is named in full, as the store's URL and the path in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The URL names no kind of store that there is.
    #[error("'{url}' names no store: {reason}; give a directory, s3://, gs://, az:// or https://")]
    Url {
        /// What was given, without a password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store's settings do not work together.
    #[error("can't open the store {store}: {reason}")]
    Open {
        /// The store's URL.
        store: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes would pass over a network where all can read and change them.
    #[error(
        "{endpoint} is plain HTTP to another machine: everybody on the way can read and change what \
         passes; use https://, or allow plain HTTP in the settings"
    )]
    PlainHttp {
        /// Where the bytes would go.
        endpoint: String,
    },
    /// A store that is only for reading was to be written.
    #[error("can't write {object}: this store is read-only; name one that is not")]
    ReadOnly {
        /// Which object.
        object: String,
    },
    /// There is no such object. Other reads may fail with a cause; this one is certain.
    #[error("can't {operation} {object}: it is not in the store; {}", Failure::NotFound.advice())]
    NotFound {
        /// What was tried.
        operation: Operation,
        /// Which object.
        object: String,
    },
    /// All that could be tried has been tried, or nothing would help.
    #[error(
        "can't {operation} {object}: {cause} (attempts: {attempts}, in {elapsed:.1?}); {}",
        cause.advice()
    )]
    Failed {
        /// What was tried.
        operation: Operation,
        /// Which object.
        object: String,
        /// How many times it was tried.
        attempts: u32,
        /// How long it took in all.
        elapsed: Duration,
        /// Why the last attempt failed.
        cause: Failure,
    },
    /// An object that is longer than anything that belongs there.
    #[error("{object} has {len} bytes, more than the {len_max} that it may have; it is damaged")]
    TooLong {
        /// Which object.
        object: String,
        /// Its length, in bytes.
        len: u64,
        /// The most that the caller takes.
        len_max: u64,
    },
    /// More objects than a store of this kind can hold.
    #[error("{object} holds more than {max} objects; is this a store of inlay's?")]
    TooMany {
        /// Which part of the store.
        object: String,
        /// The most that are listed.
        max: usize,
    },
    /// A record that can't be read.
    #[error("can't use {object}: {reason}")]
    Record {
        /// Which object.
        object: String,
        /// What is wrong with it.
        reason: RecordError,
    },
    /// A profile that can't be used. Only prefetching wants one: go on without it.
    #[error(
        "can't use {object}: {reason}; only the order of fetching needs it, so it can be dropped"
    )]
    Profile {
        /// Which object.
        object: String,
        /// What is wrong with it.
        reason: ProfileError,
    },
    /// Others kept changing the object while it was to be changed.
    #[error("can't write {object}: others changed it {attempts} times meanwhile; try again")]
    Contended {
        /// Which object.
        object: String,
        /// How often it was tried.
        attempts: u32,
    },
}

impl StoreError {
    /// Whether the store is certain that there is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
