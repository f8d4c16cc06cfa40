//! What can go wrong with one attempt, and whether another one could help.

use std::error::Error as StdError;
use std::io::ErrorKind;
use std::time::Duration;

use super::http::ServerAnswer;

/// Why one attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// There is no such object.
    #[error("it is not there")]
    NotFound,
    /// The store refuses these credentials, or their holder may not do this.
    #[error("permission denied ({0})")]
    Denied(String),
    /// The store says, or may mean, that the credentials have expired.
    #[error("the credentials were refused, perhaps because they have expired ({0})")]
    Credentials(String),
    /// A conditional write found another state than it required.
    #[error("the object was changed meanwhile")]
    Conflict,
    /// The store can't do this at all.
    #[error("the store does not support it ({0})")]
    Unsupported(String),
    /// An answer that says what is wrong.
    #[error("{0}")]
    Answer(ServerAnswer),
    /// Not done in time.
    #[error("no answer within {0:.1?}")]
    Timeout(Duration),
    /// The body ended before its end.
    #[error("{got} bytes came instead of {want}")]
    Short {
        /// Bytes that should have come.
        want: u64,
        /// Bytes that came.
        got: u64,
    },
    /// The body went on after its end, or is longer than the caller takes.
    #[error("more than the {0} bytes that were asked for came")]
    Long(u64),
    /// The local disk or its file system says no, and will go on saying so.
    #[error("{0}")]
    Disk(String),
    /// Anything else: a broken connection, an answer that makes no sense.
    #[error("{0}")]
    Transport(String),
}

/// What helps against a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Another attempt, not before this time has passed if one is given.
    Again(Option<Duration>),
    /// Another attempt with fresh credentials.
    FreshCredentials,
    /// Nothing.
    Nothing,
}

impl Failure {
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
            | Self::Answer(_) => Remedy::Nothing,
        }
    }

    /// What the user can do about it, as the end of a sentence.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::NotFound => "check the store's URL, or import the snapshot again",
            Self::Denied(_) => "check that the credentials may do this in this store",
            Self::Credentials(_) => "renew the credentials",
            Self::Unsupported(_) => "use a store that supports it",
            Self::Disk(_) => "check the file system that holds the store",
            Self::Conflict => "try again",
            Self::Answer(answer) => answer.advice(),
            Self::Timeout(_) | Self::Transport(_) => {
                "check that the store is reachable, then try again"
            }
            Self::Short { .. } | Self::Long(_) => {
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
                Some(io) if is_lasting(io.kind()) => Self::Disk(io.to_string()),
                _ => Self::Transport(innermost(&error)),
            },
        }
    }
}

/// Errors of a file system that another attempt a second later does not mend.
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

/// The first error of type `E` among `error` and its causes.
fn in_chain<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&e| e.source()).find_map(|e| e.downcast_ref())
}

/// What the last cause says: the errors around it repeat each other, and some span lines.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let last = std::iter::successors(Some(error), |&e| e.source()).last().unwrap_or(error);
    last.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
