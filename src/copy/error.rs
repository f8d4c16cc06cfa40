//! What can go wrong while objects are copied.

use std::io;
use std::path::{Path, PathBuf};

/// Why something can't be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// An object could not be read, made or changed.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The archive could not be written: whoever reads it is gone.
    #[error("writing the archive: {0}")]
    Write(#[source] io::Error),
    /// The archive could not be read.
    #[error("reading the archive: {0}")]
    Read(#[source] io::Error),
    /// A file became shorter while it was read.
    #[error("{} became shorter while it was copied; copy it when it is not being written", .0.display())]
    Shrunk(PathBuf),
    /// An entry of an archive has a name that leads elsewhere.
    #[error("the archive has an entry {name:?}, which would not be below its target")]
    Name {
        /// The name.
        name: String,
    },
    /// Something else is in the way.
    #[error("{}: {why}", path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than may be copied at once.
    #[error("there are more than {limit} objects; copy less at once")]
    TooMany {
        /// How many there may be.
        limit: u64,
    },
}

impl CopyError {
    /// For `map_err`: `what` was being done to `path`.
    pub(super) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// Whether it is only that there is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
