//! Names of entries, and what is special about some.

use super::Wrong;

/// How a whiteout's name begins.
const WHITEOUT: &[u8] = b".wh.";
/// How the names of opaque markers, and of what aufs kept for itself, begin.
const META: &[u8] = b".wh..wh.";
/// Says that its directory hides what lower layers have there.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A directory as the archive has it, and the name of something in it.
pub(super) type DirAndName<'a> = (&'a [u8], &'a [u8]);

/// Splits an entry's name. `None`: it is the root's.
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

/// The components of a directory's name, without empty ones and dots. `..` is an error.
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

/// `name` in the directory with the normalised path `dir`; the root's is empty.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// What the last component of an entry's name says.
pub(super) enum Marker<'a> {
    /// Nothing special.
    None,
    /// Lower layers' entry of this name is hidden.
    Whiteout(&'a [u8]),
    /// What lower layers have in the directory is hidden.
    Opaque,
    /// What aufs kept for itself: never visible.
    Meta,
}

impl<'a> Marker<'a> {
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
