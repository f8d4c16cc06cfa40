//! Defines the errors of a registry.

use std::io;
use std::path::PathBuf;

/// The reason an image cannot be fetched from its registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The image reference is invalid.
    #[error("'{text}' is not an image reference: {why}")]
    Reference {
        /// The reference as given.
        text: String,
        /// The defect.
        why: String,
    },
    /// The credentials could not be obtained.
    #[error("credentials for {registry}: {why}; log in again with: docker login {registry}")]
    Credentials {
        /// The registry.
        registry: String,
        /// The cause.
        why: String,
    },
    /// The registry denied access to the image.
    #[error(
        "{reference}: the registry refuses it ({why}); check the name, or log in with: \
         docker login {registry}"
    )]
    Refused {
        /// The image.
        reference: String,
        /// Its registry.
        registry: String,
        /// The registry's reason.
        why: String,
    },
    /// The registry does not have the image, or a part of it.
    #[error("{reference}: the registry does not have {what}; check the name and the tag")]
    NotFound {
        /// The image.
        reference: String,
        /// The image itself, or one of its blobs.
        what: String,
    },
    /// A response exceeds its limit.
    #[error("{reference}: {what} has more than {limit} bytes")]
    TooLarge {
        /// The image.
        reference: String,
        /// The object that is too large.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The registry is unreachable, or failed on every retry.
    #[error(
        "{reference}: {doing} failed {tries} times, the last time with: {why}; check the network \
         and try again (a registry without TLS must be asked for)"
    )]
    Failed {
        /// The image.
        reference: String,
        /// The operation that failed.
        doing: String,
        /// Number of attempts.
        tries: u32,
        /// The last failure.
        why: String,
    },
    /// The registry redirects to a URL that the client refuses.
    #[error("{0}; the registry must redirect to HTTPS, or plain HTTP be allowed for all of it")]
    Redirect(String),
    /// The runtime for downloads could not be started.
    #[error("downloads can't be started: {0}")]
    Runtime(#[source] io::Error),
    /// TLS could not be initialized, so no connection is possible.
    #[error("TLS can't be set up: {0}; are the certificates of the authorities installed?")]
    Tls(String),
    /// The file of a layer could not be written.
    #[error("{path}: {source}", path = path.display())]
    Scratch {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// A failed attempt, classified by its consequence for a retry.
#[derive(Debug)]
pub(super) enum AttemptFailure {
    /// The reference is wrong, or its target is gone.
    NotFound,
    /// Access denied, or the token has expired.
    Refused(String),
    /// A retry may succeed.
    Transient(String),
    /// A retry cannot succeed.
    Final(RegistryError),
}

impl AttemptFailure {
    /// Classifies an HTTP error status.
    pub(super) fn of_status(status: u16, message: &str) -> Self {
        let why = format!("status {status} {}", short(message)).trim_end().to_owned();
        match status {
            401 | 403 | 407 => Self::Refused(why),
            404 | 410 => Self::NotFound,
            _ => Self::Transient(why),
        }
    }

    /// Classifies an HTTP error status of a token server. Some deny access with 400 or 404.
    pub(super) fn of_login(status: u16, message: &str) -> Self {
        let why = format!("login: status {status} {}", short(message)).trim_end().to_owned();
        match status {
            408 | 429 => Self::Transient(why),
            400..=499 => Self::Refused(why),
            _ => Self::Transient(why),
        }
    }
}

impl From<reqwest::Error> for AttemptFailure {
    fn from(error: reqwest::Error) -> Self {
        if error.is_redirect() {
            return Self::Final(RegistryError::Redirect(with_causes(&error)));
        }
        Self::Transient(with_causes(&error))
    }
}

impl From<io::Error> for AttemptFailure {
    fn from(error: io::Error) -> Self {
        Self::Transient(with_causes(&error))
    }
}

/// Formats an error with its causes: the outermost error alone is seldom specific.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    short(&text)
}

/// Sanitizes server-supplied text: one line of bounded length without control characters.
fn short(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
    if cut.len() < line.len() { cut + "…" } else { cut }
}
