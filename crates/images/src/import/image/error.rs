//! Defines the errors of an image, up to the contents of its layers.

use std::io;
use std::path::PathBuf;

use crate::import::RegistryError;

/// The reason an image cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A directory is not an OCI image layout.
    #[error("{path} is not an OCI image layout of version 1: {why}", path = path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
        /// The defect.
        why: String,
    },
    /// A file is not a `docker save` archive.
    #[error("{path} is not an archive of `docker save`: {why}", path = path.display())]
    NotAnArchive {
        /// Path of the file.
        path: PathBuf,
        /// The defect.
        why: String,
    },
    /// A file of the image could not be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A digest is malformed.
    #[error("'{0}' is not a digest: sha256: or sha512: and its hexadecimal digits")]
    Digest(String),
    /// A blob could not be read, or does not match its digest.
    #[error("{blob}: {source}")]
    Blob {
        /// Its digest.
        blob: String,
        /// The cause.
        source: io::Error,
    },
    /// A manifest, an index or a configuration is invalid.
    #[error("{what}: {why}")]
    Json {
        /// Name of the document.
        what: String,
        /// The defect.
        why: String,
    },
    /// A document exceeds a limit.
    #[error("{what} has {found} {of}, where {limit} are the most")]
    TooLarge {
        /// The document.
        what: String,
        /// Number of units found.
        found: u64,
        /// The unit.
        of: &'static str,
        /// The limit.
        limit: u64,
    },
    /// There are several images, and the source names none of them.
    #[error("there are several images: add one of these names after a colon: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// No image has the requested name.
    #[error("no image '{wanted}'; available: {}", names(there))]
    NoSuchImage {
        /// The requested name.
        wanted: String,
        /// Names that exist.
        there: Vec<String>,
    },
    /// No image exists for the requested platform.
    #[error("no image for {wanted}; available: {}", names(there))]
    NoSuchPlatform {
        /// The requested platform.
        wanted: String,
        /// Platforms that exist.
        there: Vec<String>,
    },
    /// Its registry failed to deliver it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It uses an unsupported format.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// The unsupported part.
        what: String,
        /// The reason, or a remedy.
        why: &'static str,
    },
}

fn names(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
