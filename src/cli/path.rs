//! `SNAPSHOT:/PATH`: finds the object that it means, following symbolic links inside the snapshot.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use inlay_store::format::{FileKind, Index, InodeIdx};

use super::error::CliError;
use super::output::shown;

/// How many symbolic links a path may lead through, as in Linux.
const LINKS_MAX: u32 = 40;

/// A snapshot and a path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) snapshot: String,
    pub(super) path: Vec<u8>,
}

/// Whether a symbolic link at the path's end is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastLink {
    Follow,
    Keep,
}

impl Target {
    /// `SNAPSHOT` alone means its root. Names may hold a colon (`python:3.12`), so the path begins
    /// at the first `:/`.
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
            .map_err(|_| CliError::Usage(format!("'{}' names no snapshot", shown(snapshot))))?;
        Ok(Self { snapshot: snapshot.to_owned(), path: path.to_owned() })
    }

    /// The inode behind the path. Links lead nowhere outside the snapshot: `/` is its root.
    pub(super) fn find(&self, index: &Index, last: LastLink) -> Result<InodeIdx, CliError> {
        let wrong =
            |why| CliError::Path { snapshot: self.snapshot.clone(), path: shown(&self.path), why };
        let mut links = 0;
        // What is still to be walked, the next name last.
        let mut rest: Vec<Vec<u8>> = names(&self.path);
        let mut way = vec![InodeIdx::ROOT];
        while let Some(name) = rest.pop() {
            let dir = way.last().copied().unwrap_or(InodeIdx::ROOT);
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            if index.attr(dir)?.kind != FileKind::Directory {
                return Err(wrong("a part of the path is not a directory"));
            }
            let inode =
                index.lookup(dir, &name)?.ok_or_else(|| wrong("no such file or directory"))?;
            let is_last = rest.is_empty() && last == LastLink::Keep;
            if index.attr(inode)?.kind != FileKind::Symlink || is_last {
                way.push(inode);
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(wrong("too many symbolic links"));
            }
            let target = index.symlink(inode)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            rest.extend(names(target));
        }
        Ok(way.last().copied().unwrap_or(InodeIdx::ROOT))
    }
}

/// The names of a path, the first one last.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
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
