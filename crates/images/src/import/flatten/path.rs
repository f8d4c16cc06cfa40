//! Parses entry names, including whiteouts and opaque markers.

use super::Wrong;

/// Prefix of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of opaque markers and of aufs's internal names.
const META: &[u8] = b".wh..wh.";
/// Opaque marker: its directory hides the contents of lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A directory path as stored in the archive, and a name in it.
pub(super) type DirAndName<'a> = (&'a [u8], &'a [u8]);

/// Splits an entry's name into directory and last component; `None` for the root.
pub(super) fn split(name: &[u8]) -> Result<Option<DirAndName<'_>>, Wrong> {
    let mut name = name;
    loop {
        name = match name {
            [rest @ .., b'/'] | [rest @ .., b'/', b'.'] => rest,
            b"." | b"" => return Ok(None),
            _ => break,
        };
    }
    let (dir, last) = match name.iter().rposition(|&b| b == b'/') {
        Some(slash) => name.split_at(slash),
        None => (&[][..], name),
    };
    let last = last.strip_prefix(b"/").unwrap_or(last);
    if last == b".." { Err(dots()) } else { Ok(Some((dir, last))) }
}

/// Splits a directory path into components without empty ones and `.`. Fails on `..`.
pub(super) fn components(dir: &[u8]) -> Result<Vec<&[u8]>, Wrong> {
    let mut components = Vec::new();
    for component in dir.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(dots()),
            _ => components.push(component),
        }
    }
    Ok(components)
}

fn dots() -> Wrong {
    Wrong::Entry("its name has a '..'".into())
}

/// Joins `name` to the normalised directory path `dir`, which is empty for the root.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Meaning of the last component of an entry's name.
pub(super) enum WhiteoutMarker<'a> {
    /// An ordinary name.
    None,
    /// Hides the entry of this name in lower layers.
    Whiteout(&'a [u8]),
    /// Hides the directory's contents in lower layers.
    Opaque,
    /// Internal to aufs: never visible.
    Meta,
}

impl<'a> WhiteoutMarker<'a> {
    pub(super) fn of(name: &'a [u8]) -> Result<Self, Wrong> {
        if name == OPAQUE {
            return Ok(Self::Opaque);
        }
        if name.starts_with(META) {
            return Ok(Self::Meta);
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(Self::None),
            Some(b"" | b"." | b"..") => {
                Err(Wrong::Entry("a whiteout of nothing, of '.' or of '..'".into()))
            }
            Some(hidden) => Ok(Self::Whiteout(hidden)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split() {
        for (name, dir, last) in [
            ("a", "", "a"),
            ("./a", ".", "a"),
            ("/a", "", "a"),
            ("a/b/", "a", "b"),
            ("a/b/.", "a", "b"),
            ("//a//b//", "//a/", "b"),
            ("a/b/./", "a", "b"),
            ("...", "", "..."),
        ] {
            let Ok(Some(found)) = split(name.as_bytes()) else { panic!("{name}") };
            assert_eq!(found, (dir.as_bytes(), last.as_bytes()), "{name}");
        }
        for root in ["", "/", ".", "./", "/.", ".//."] {
            assert!(matches!(split(root.as_bytes()), Ok(None)), "{root}");
        }
        for out in ["..", "a/..", "../", "a/../."] {
            assert!(split(out.as_bytes()).is_err(), "{out}");
        }
        assert!(components(b"a/../b").is_err());
        assert_eq!(components(b"/a//./b").ok(), Some(vec![&b"a"[..], b"b"]));
    }
}
