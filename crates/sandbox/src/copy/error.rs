//! The errors of copying objects.

use std::io;
use std::path::{Path, PathBuf};

use inlay_images::import::ImportError;

/// Why an object can't be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// An object could not be read, created or changed.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb phrase.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The archive could not be written, usually because its reader has disconnected.
    #[error("writing the archive: {0}")]
    Write(#[source] io::Error),
    /// The archive could not be read.
    #[error("reading the archive: {0}")]
    Read(#[source] io::Error),
    /// A file was truncated while it was read.
    #[error("{} became shorter while it was copied; copy it when it is not being written", .0.display())]
    Shrunk(PathBuf),
    /// The archive is damaged or has an unsupported format.
    #[error("reading the archive: {0}")]
    Archive(String),
    /// A file that reports a size of 0 has more content than allowed.
    #[error("{} says that it is empty, and has more than {limit} bytes; it can't be copied",
        path.display())]
    Endless {
        /// The file.
        path: PathBuf,
        /// The maximum content, in bytes.
        limit: u64,
    },
    /// A directory was moved while it was read or written.
    #[error("{} was moved while it was copied; copy it when it is not being moved", .0.display())]
    Moved(PathBuf),
    /// A part of an object exceeds the limits of an archive.
    #[error("{path} has {what} of more than {limit} bytes; it can't be copied",
        path = shortened(path))]
    TooLong {
        /// The object.
        path: PathBuf,
        /// The part that is too long.
        what: &'static str,
        /// Its maximum length, in bytes.
        limit: usize,
    },
    /// Too many files have more than one hard link.
    #[error("too many files have more than one name, {} among them; copy less at once", .0.display())]
    TooManyLinks(PathBuf),
    /// An entry of an archive has a name that escapes the target.
    #[error("the archive has an entry '{}', which would not be below its target", name.escape_ascii())]
    Name {
        /// The name.
        name: Vec<u8>,
    },
    /// An archive with several top-level objects was to be copied to a single name.
    #[error("the archive holds both '{}' and '{}', and only one object can be {}; copy to a directory",
        first.escape_ascii(), other.escape_ascii(), path.display())]
    SeveralTops {
        /// The requested path.
        path: PathBuf,
        /// The name of the first object.
        first: Vec<u8>,
        /// The name of another one.
        other: Vec<u8>,
    },
    /// An archive has a hard link to a file that is not part of it.
    #[error("the archive has a hard link '{}' to something that it does not hold", name.escape_ascii())]
    Link {
        /// The link's target.
        name: Vec<u8>,
    },
    /// An existing object is in the way.
    #[error("{}: {why}", path.display())]
    InTheWay {
        /// Its path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// The copy has too many objects.
    #[error("there are more than {limit} objects; copy less at once")]
    TooMany {
        /// The maximum number of objects.
        limit: u64,
    },
}

impl CopyError {
    /// For `map_err`: `what` was attempted on `path`.
    pub(super) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// Reports whether the only problem is that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Returns a path short enough for a message.
fn shortened(path: &Path) -> String {
    const SHOWN_MAX: usize = 1024;
    let text = path.to_string_lossy();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

impl From<ImportError> for CopyError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Layer { source, .. } => Self::Read(source),
            ImportError::Archive { why, at, .. } => Self::Archive(format!("{why} (at byte {at})")),
            ImportError::Entry { entry, why, .. } => {
                Self::Archive(format!("entry '{}': {why}", entry.escape_ascii()))
            }
            other => Self::Archive(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_object_is_not_found() {
        let io = |kind: io::ErrorKind| CopyError::io("open", "/x".as_ref())(io::Error::from(kind));
        assert!(io(io::ErrorKind::NotFound).is_not_found());
        assert!(!io(io::ErrorKind::PermissionDenied).is_not_found());
        assert!(!CopyError::TooMany { limit: 1 }.is_not_found());
    }

    #[test]
    fn a_long_path_is_shortened_between_characters() {
        assert_eq!(shortened("/short".as_ref()), "/short");
        let long = "é".repeat(2000);
        assert_eq!(shortened(long.as_ref()), format!("{}…", "é".repeat(1024)));
    }
}
