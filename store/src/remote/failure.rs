//! Classifies the failure of one attempt, and decides whether a retry can help.

use std::error::Error as StdError;
use std::io::ErrorKind;
use std::time::Duration;

use super::http::ServerAnswer;
use super::local::{BehindEnd, NotAFile};
use super::redirect::RefusedRedirect;

/// The error of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The object does not exist.
    #[error("it is not there")]
    NotFound,
    /// The credentials are invalid or do not permit the operation.
    #[error("permission denied ({0})")]
    Denied(String),
    /// The credentials have, or may have, expired.
    #[error("the credentials were refused, perhaps because they have expired ({0})")]
    Credentials(String),
    /// The precondition of a conditional write failed.
    #[error("the object was changed meanwhile")]
    Conflict,
    /// The store does not support the operation.
    #[error("the store does not support it ({0})")]
    Unsupported(String),
    /// An error response of the server.
    #[error("{0}")]
    Answer(ServerAnswer),
    /// A deadline expired.
    #[error("no answer within {0:.1?}")]
    Timeout(Duration),
    /// The body ended early.
    #[error("{got} bytes came instead of {want}")]
    Short {
        /// Expected length, in bytes.
        want: u64,
        /// Actual length, in bytes.
        got: u64,
    },
    /// An object on disk ends before the requested range starts or ends; a retry will not help.
    #[error("it has only {0} bytes")]
    Truncated(u64),
    /// The body is longer than expected or than the caller accepts.
    #[error("more than the {0} bytes that were asked for came")]
    Long(u64),
    /// A persistent error of the local disk or filesystem.
    #[error("{0}")]
    Disk(String),
    /// The server redirects to a location that is not allowed.
    #[error("{0}")]
    Redirect(RefusedRedirect),
    /// In a directory store, the path of the object is not a regular file.
    #[error("{0}")]
    NotAFile(String),
    /// Any other error, e.g. a broken connection or an invalid response.
    #[error("{0}")]
    Transport(String),
}

/// The remedy for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Retry. The time is the server's minimum wait, which the deadline of the call limits.
    Again(Option<Duration>),
    /// Retry with fresh credentials.
    FreshCredentials,
    /// None: a retry will not help.
    Nothing,
}

impl Failure {
    /// Returns whether and how to retry.
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Credentials(_) => Remedy::FreshCredentials,
            Self::Timeout(_) | Self::Short { .. } | Self::Long(_) | Self::Transport(_) => {
                Remedy::Again(None)
            }
            Self::Answer(answer) if answer.is_passing() => Remedy::Again(answer.retry_after),
            Self::NotFound
            | Self::Denied(_)
            | Self::Conflict
            | Self::Unsupported(_)
            | Self::Disk(_)
            | Self::NotAFile(_)
            | Self::Truncated(_)
            | Self::Redirect(_)
            | Self::Answer(_) => Remedy::Nothing,
        }
    }

    /// Returns advice for the user, as the end of a sentence.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::NotFound => "check the store's URL, or import the snapshot again",
            Self::Denied(_) => "check that the credentials may do this in this store",
            Self::Credentials(_) => "renew the credentials",
            Self::Unsupported(_) => "use a store that supports it",
            Self::Disk(_) => "check the file system that holds the store",
            Self::Redirect(_) => {
                "check the store's URL and region, and give the right server's URL"
            }
            Self::NotAFile(_) => "remove it from the store, and restore the object",
            Self::Conflict => "try again",
            Self::Answer(answer) => answer.advice(),
            Self::Timeout(_) | Self::Transport(_) => {
                "check that the store is reachable, then try again"
            }
            Self::Short { .. } | Self::Truncated(_) | Self::Long(_) => {
                "check the object with `inlay verify`; it may be damaged in the store"
            }
        }
    }
}

impl From<ServerAnswer> for Failure {
    fn from(answer: ServerAnswer) -> Self {
        match answer.status {
            404 if answer.code.is_none() => Self::NotFound,
            _ if answer.may_mean_expiry() => Self::Credentials(answer.to_string()),
            401 | 403 => Self::Denied(answer.to_string()),
            405 | 501 => Self::Unsupported(answer.to_string()),
            _ => Self::Answer(answer),
        }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error;
        if let Some(answer) = in_chain::<ServerAnswer>(&error) {
            return answer.clone().into();
        }
        if let Some(refused) = in_chain::<RefusedRedirect>(&error) {
            return Self::Redirect(refused.clone());
        }
        match &error {
            Error::NotFound { .. } => Self::NotFound,
            Error::AlreadyExists { .. }
            | Error::Precondition { .. }
            | Error::NotModified { .. } => Self::Conflict,
            Error::PermissionDenied { .. } => Self::Denied(innermost(&error)),
            Error::Unauthenticated { .. } => Self::Credentials(innermost(&error)),
            Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::InvalidPath { .. }
            | Error::UnknownConfigurationKey { .. } => Self::Unsupported(error.to_string()),
            _ => match in_chain::<std::io::Error>(&error) {
                None if in_chain::<BehindEnd>(&error).is_some() => {
                    Self::Truncated(in_chain::<BehindEnd>(&error).map_or(0, |behind| behind.len))
                }
                Some(io) if not_a_file(io).is_some() => Self::NotAFile(io.to_string()),
                Some(io) if is_lasting(io.kind()) => Self::Disk(io.to_string()),
                _ => Self::Transport(innermost(&error)),
            },
        }
    }
}

/// Returns whether a filesystem error persists, so that a retry a second later will not help.
fn is_lasting(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::PermissionDenied
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::FileTooLarge
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidFilename
    )
}

fn not_a_file(error: &std::io::Error) -> Option<&NotAFile> {
    error.get_ref()?.downcast_ref()
}

/// Returns the first error of type `E` in the chain of `error` and its causes.
fn in_chain<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&e| e.source()).find_map(|e| e.downcast_ref())
}

/// Returns the message of the innermost cause: the outer errors repeat each other, and some span
/// several lines.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let last = std::iter::successors(Some(error), |&e| e.source()).last().unwrap_or(error);
    last.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
