//! What can be wrong with an image, before its layers are looked into.

use std::io;
use std::path::PathBuf;

use crate::import::RegistryError;

/// Why an image can't be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A directory is no OCI image layout.
    #[error("{path} is no OCI image layout of version 1: {why}", path = path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A file is no archive as `docker save` makes them.
    #[error("{path} is no archive of `docker save`: {why}", path = path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file of the image can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A digest that no content can have.
    #[error("'{0}' is no digest: sha256: or sha512: and its hexadecimal digits are needed")]
    Digest(String),
    /// A blob's bytes are not those that its digest names.
    #[error("{blob}: {source}")]
    Blob {
        /// Its digest.
        blob: String,
        /// What is wrong.
        source: io::Error,
    },
    /// A manifest, an index or a configuration does not say what it must.
    #[error("{what}: {why}")]
    Json {
        /// Which.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Larger than any image's is.
    #[error("{what} has {found} {of}, where {limit} are the most")]
    TooLarge {
        /// What.
        what: String,
        /// How many it has.
        found: u64,
        /// Of what.
        of: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// There are several images and none was named.
    #[error("there are several images: add one of these names after a colon: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// There is no image of that name.
    #[error("there is no image '{wanted}'; there are: {}", names(there))]
    NoSuchImage {
        /// The name that was asked for.
        wanted: String,
        /// The names that exist.
        there: Vec<String>,
    },
    /// The image is not there for the platform that was asked for.
    #[error("the image is not there for {wanted}; it is there for: {}", names(there))]
    NoSuchPlatform {
        /// What was asked for.
        wanted: String,
        /// What exists.
        there: Vec<String>,
    },
    /// Its registry does not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It is stored in a way that this program does not read.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// What.
        what: String,
        /// Why, or what to do.
        why: &'static str,
    },
}

fn names(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
