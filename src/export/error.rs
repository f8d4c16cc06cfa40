//! What can go wrong while a snapshot is given back, and what can't be given back.

use std::fmt;
use std::io;
use std::path::PathBuf;

use inlay_store::format::{FileKind, FormatError};

/// Why a snapshot could not be exported. Nothing is visible at the target then, but for what was
/// already written to standard output.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target is none that this program knows.
    #[error("'{0}' is no target: say tar:FILE, tar:-, dir:PATH or oci:DIR")]
    Target(String),
    /// The target directory holds something.
    #[error("{path} is not empty: give a new or an empty directory", path = .0.display())]
    NotEmpty(PathBuf),
    /// A device, a pipe or a directory stands where a file should be made.
    #[error("{path} is there and is no file: give another name, or pipe from tar:-",
        path = .0.display())]
    NotAFile(PathBuf),
    /// The target's path has no name that could be made.
    #[error("{path} can't be made: give the path of a new directory", path = .0.display())]
    NoName(PathBuf),
    /// The target, or something beside it, could not be written.
    #[error("writing {path}: {source}", path = path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An object of the snapshot could not be made.
    #[error("'{path}': {doing}: {source}")]
    Object {
        /// Its path in the snapshot.
        path: String,
        /// What was tried.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The index is damaged.
    #[error("'{path}': {source}; the snapshot can't be exported")]
    Index {
        /// The path in the snapshot where it was found.
        path: String,
        /// What is wrong.
        source: FormatError,
    },
    /// A file's bytes could not be had.
    #[error("'{path}': reading its bytes: {source}")]
    Bytes {
        /// Its path in the snapshot.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something is larger than what can be written.
    #[error("'{path}': {what} of {found} bytes, where {limit} are the most")]
    TooLarge {
        /// Its path in the snapshot.
        path: String,
        /// What is too large.
        what: &'static str,
        /// Its size.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The snapshot's configuration is not that of an image.
    #[error("the image's configuration can't be used: {0}")]
    Config(#[source] serde_json::Error),
}

/// Why a range of a file was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Its bytes could not be had.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// They could not be written to where they should go.
    #[error(transparent)]
    Sink(#[from] io::Error),
}

/// What was not given back as it is in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The path in the snapshot.
    pub path: String,
    /// What of it.
    pub what: Omission,
}

/// What the target can't hold, or this user may not make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Omission {
    /// A tar has no sockets.
    Socket,
    /// The name would be read as a deletion by whoever unpacks the layer.
    LooksLikeWhiteout,
    /// A device number that the target can't hold.
    DeviceNumber,
    /// The user may not make such a node.
    Node(FileKind),
    /// The user may not give the object to its owner.
    Owner,
    /// The target's file system, or the user's rights, do not allow this attribute.
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

/// The warnings of one export: the first ones, and how many came after them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warnings {
    /// At most `Warnings::KEPT`.
    pub first: Vec<Warning>,
    /// How many more there were.
    pub more: u64,
}

impl Warnings {
    /// How many are kept.
    pub const KEPT: usize = 1000;

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub(super) fn add(&mut self, path: &[u8], what: Omission) {
        if self.first.len() < Self::KEPT {
            self.first.push(Warning { path: shown(path), what });
        } else {
            self.more += 1;
        }
    }
}

/// A path of the snapshot for a message: one line, whatever bytes it has.
pub(super) fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    match std::str::from_utf8(path) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => path.escape_ascii().to_string(),
    }
}
