//! What can go wrong between here and a registry.

use std::io;
use std::path::PathBuf;

use oci_client::errors::{OciDistributionError, OciErrorCode};

/// Why an image can't be brought from its registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No image can have this name.
    #[error("'{text}' is no name of an image: {why}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The credentials can't be had.
    #[error("credentials for {registry}: {why}; log in again with: docker login {registry}")]
    Credentials {
        /// For which registry.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// The registry does not give the image to this user.
    #[error(
        "{reference}: the registry refuses it ({why}); check the name, or log in with: \
         docker login {registry}"
    )]
    Refused {
        /// The image.
        reference: String,
        /// Its registry.
        registry: String,
        /// What the registry says.
        why: String,
    },
    /// The registry does not have it.
    #[error("{reference}: the registry does not have {what}; check the name and the tag")]
    NotFound {
        /// The image.
        reference: String,
        /// The image itself, or one of its blobs.
        what: String,
    },
    /// Its answer is larger than any of its kind.
    #[error("{reference}: {what} has more than {limit} bytes")]
    TooLarge {
        /// The image.
        reference: String,
        /// What is too large.
        what: String,
        /// How many bytes are allowed.
        limit: u64,
    },
    /// The registry can't be reached, or fails again and again.
    #[error(
        "{reference}: {doing} failed {tries} times, the last time with: {why}; check the network \
         and try again (a registry without TLS must be asked for)"
    )]
    Failed {
        /// The image.
        reference: String,
        /// What was tried.
        doing: String,
        /// How often.
        tries: u32,
        /// The last failure.
        why: String,
    },
    /// The threads for the downloads can't be started.
    #[error("downloads can't be started: {0}")]
    Runtime(#[source] io::Error),
    /// No connection can be made at all.
    #[error("TLS can't be set up: {0}; are the certificates of the authorities installed?")]
    Tls(String),
    /// A file for a layer can't be written.
    #[error("{path}: {source}", path = path.display())]
    Scratch {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What one failed attempt means for the next.
#[derive(Debug)]
pub(super) enum Failure {
    /// The name is wrong, or what it names is gone.
    NotFound,
    /// Not for this user, or the token is no longer valid.
    Refused(String),
    /// It may go better the next time.
    Transient(String),
    /// It will not go better.
    Final(RegistryError),
}

impl Failure {
    /// What an HTTP status that is no success means.
    pub(super) fn of_status(status: u16, message: &str) -> Self {
        let why = format!("status {status} {}", short(message)).trim_end().to_owned();
        match status {
            401 | 403 | 407 => Self::Refused(why),
            404 | 410 => Self::NotFound,
            _ => Self::Transient(why),
        }
    }
}

impl From<OciDistributionError> for Failure {
    fn from(error: OciDistributionError) -> Self {
        use OciErrorCode as Code;
        match error {
            OciDistributionError::AuthenticationFailure(why) => Self::Refused(short(&why)),
            OciDistributionError::UnauthorizedError { .. } => {
                Self::Refused("not authorised".to_owned())
            }
            OciDistributionError::ServerError { code, message, .. } => {
                Self::of_status(code, &message)
            }
            OciDistributionError::ImageManifestNotFoundError(_) => Self::NotFound,
            OciDistributionError::RegistryError { envelope, .. } => {
                let codes = || envelope.errors.iter().map(|error| &error.code);
                let why = short(&envelope.to_string());
                if codes().any(|code| matches!(code, Code::Unauthorized | Code::Denied)) {
                    Self::Refused(why)
                } else if codes().any(|code| {
                    matches!(
                        code,
                        Code::BlobUnknown
                            | Code::ManifestUnknown
                            | Code::ManifestBlobUnknown
                            | Code::NameUnknown
                            | Code::NotFound
                    )
                }) {
                    Self::NotFound
                } else {
                    Self::Transient(why)
                }
            }
            OciDistributionError::RequestError(error) => Self::from(error),
            other => Self::Transient(short(&other.to_string())),
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Transient(with_causes(&error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Transient(with_causes(&error))
    }
}

/// The error and what caused it: the outermost one seldom tells what happened.
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

/// One line that is not too long, whatever a server has sent.
fn short(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
    if cut.len() < line.len() { cut + "…" } else { cut }
}
