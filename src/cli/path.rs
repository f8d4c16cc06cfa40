//! Parses and resolves `SNAPSHOT:/PATH`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use inlay_snapshots::{FindError, find};
use inlay_store::format::{Index, InodeIdx};

use super::error::CliError;
use super::output::escaped;

pub(super) use inlay_snapshots::LastLink;

/// A path in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) snapshot: String,
    pub(super) path: Vec<u8>,
}

impl Target {
    /// Parses `SNAPSHOT[:/PATH]`; the path defaults to the root. Names may contain a colon
    /// (`python:3.12`), so the path starts at the first `:/`. Fails if the name is not UTF-8.
    pub(super) fn parse(text: &OsStr) -> Result<Self, CliError> {
        let bytes = text.as_bytes();
        let colon = bytes.windows(2).position(|pair| pair == b":/");
        let (snapshot, path) = match colon {
            Some(at) => {
                bytes.split_at_checked(at).map_or((bytes, &b"/"[..]), |(snapshot, rest)| {
                    (snapshot, rest.strip_prefix(b":").unwrap_or(rest))
                })
            }
            None => (bytes.strip_suffix(b":").unwrap_or(bytes), &b"/"[..]),
        };
        let snapshot = std::str::from_utf8(snapshot)
            .map_err(|_| CliError::Usage(format!("'{}' names no snapshot", escaped(snapshot))))?;
        Ok(Self { snapshot: snapshot.to_owned(), path: path.to_owned() })
    }

    /// Resolves the path to an inode. Symbolic links cannot escape the snapshot: `/` is its root.
    pub(super) fn find(&self, index: &Index, last: LastLink) -> Result<InodeIdx, CliError> {
        find(index, &self.path, last).map_err(|error| match error {
            FindError::Format(error) => CliError::Format(error),
            FindError::NotThere(why) => {
                CliError::Path { snapshot: self.snapshot.clone(), path: escaped(&self.path), why }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> (String, String) {
        let target = Target::parse(OsStr::new(text)).unwrap();
        (target.snapshot, String::from_utf8(target.path).unwrap())
    }

    #[test]
    fn a_path_begins_at_a_colon_and_a_slash() {
        assert_eq!(target("base:/etc"), ("base".into(), "/etc".into()));
        assert_eq!(target("python:3.12:/usr/bin"), ("python:3.12".into(), "/usr/bin".into()));
        assert_eq!(target("python:3.12"), ("python:3.12".into(), "/".into()));
        assert_eq!(target("base:"), ("base".into(), "/".into()));
        assert_eq!(target("base:/a:/b"), ("base".into(), "/a:/b".into()));
    }
}
