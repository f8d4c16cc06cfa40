//! Defines the errors and warnings of an export.

use std::fmt;
use std::io;
use std::path::PathBuf;

use inlay_store::format::{FileKind, FormatError};

/// The reason an export failed. The target is then untouched, except for bytes already written to
/// standard output.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target's syntax is unknown.
    #[error("'{0}' is not a target: use tar:FILE, tar:-, dir:PATH or oci:DIR")]
    Target(String),
    /// The target directory is not empty.
    #[error("{path} is not empty: use a new or an empty directory", path = .0.display())]
    NotEmpty(PathBuf),
    /// The target file's path is a device, FIFO or directory.
    #[error("{path} exists and is not a regular file: use another name, or pipe from tar:-",
        path = .0.display())]
    NotAFile(PathBuf),
    /// The target's path has no final name to create.
    #[error("can't create {path}: use the path of a new directory", path = .0.display())]
    NoName(PathBuf),
    /// The target, or a file next to it, could not be written.
    #[error("writing {path}: {source}", path = path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// An object of the snapshot could not be created.
    #[error("'{path}': {doing}: {source}")]
    Object {
        /// Its path in the snapshot.
        path: String,
        /// The operation that failed.
        doing: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// The index is damaged.
    #[error("'{path}': {source}; the snapshot can't be exported")]
    Index {
        /// Path in the snapshot at which the damage was found.
        path: String,
        /// The damage.
        source: FormatError,
    },
    /// A file's contents could not be read.
    #[error("'{path}': reading its bytes: {source}")]
    Bytes {
        /// Its path in the snapshot.
        path: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An object exceeds a limit of the target format.
    #[error("'{path}': {what} of {found} bytes, where {limit} are the most")]
    TooLarge {
        /// Its path in the snapshot.
        path: String,
        /// The part that is too large.
        what: &'static str,
        /// Its size, in bytes.
        found: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The snapshot's configuration is not an image configuration.
    #[error("the image's configuration can't be used: {0}")]
    Config(#[source] serde_json::Error),
}

/// The reason a range of a file was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Reading the bytes failed.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// Writing the bytes failed.
    #[error(transparent)]
    Sink(#[from] io::Error),
}

/// A deviation of the export from the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Path in the snapshot.
    pub path: String,
    /// The property that was lost.
    pub what: Omission,
}

/// A property that the target cannot represent, or that this user may not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Omission {
    /// The tar format has no sockets.
    Socket,
    /// Unpacking the layer would interpret the name as a whiteout.
    LooksLikeWhiteout,
    /// The device number exceeds the range of the target.
    DeviceNumber,
    /// The user may not create such a node.
    Node(FileKind),
    /// The user may not change the owner.
    Owner,
    /// The target's filesystem or the user's privileges do not permit this attribute.
    Xattr(String),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.what {
            Omission::Socket => write!(f, "'{path}' left out: a tar can't hold a socket"),
            Omission::LooksLikeWhiteout => {
                write!(f, "'{path}' left out: in a layer, its name means a deletion")
            }
            Omission::DeviceNumber => {
                write!(f, "'{path}' left out: its device number is too large")
            }
            Omission::Node(FileKind::BlockDevice | FileKind::CharDevice) => {
                write!(f, "'{path}' left out: only root may make device nodes")
            }
            Omission::Node(_) => write!(f, "'{path}' left out: it may not be made here"),
            Omission::Owner => write!(f, "'{path}' keeps your user: only root may give it away"),
            Omission::Xattr(name) => {
                write!(f, "'{path}' lacks the attribute {name}: it may not be set here")
            }
        }
    }
}

/// Warnings of one export: the first ones, and the number of the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warnings {
    /// At most `Warnings::KEPT`.
    pub first: Vec<Warning>,
    /// Number of warnings dropped beyond these.
    pub more: u64,
}

impl Warnings {
    /// Maximum warnings kept.
    pub const KEPT: usize = 1000;

    /// Whether the export had no warnings.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub(super) fn add(&mut self, path: &[u8], what: Omission) {
        if self.first.len() < Self::KEPT {
            self.first.push(Warning { path: escaped(path), what });
        } else {
            self.more += 1;
        }
    }
}

/// Formats a snapshot path for a message: one line, with arbitrary bytes escaped.
pub(super) fn escaped(path: &[u8]) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    match std::str::from_utf8(path) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => path.escape_ascii().to_string(),
    }
}
