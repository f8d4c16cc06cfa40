//! Stores the paths of many directories compactly: each has its name and its parent's number.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The maximum depth of directories. No longer path could be passed to the kernel.
pub(super) const DEPTH_MAX: u16 = 4096;

/// A directory in a [`Paths`] table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathId(u32);

#[derive(Debug)]
struct Node {
    parent: u32,
    depth: u16,
    name: Box<[u8]>,
}

/// A table of directories; each parent precedes its children.
#[derive(Debug)]
pub(super) struct Paths(Vec<Node>);

impl Paths {
    /// The root of all others.
    pub(super) const ROOT: PathId = PathId(0);

    pub(super) fn new() -> Self {
        Self(vec![Node { parent: 0, depth: 0, name: Box::default() }])
    }

    /// Adds `name` in `parent`. `None` if it is deeper than [`DEPTH_MAX`].
    pub(super) fn push(&mut self, parent: PathId, name: &[u8]) -> Option<PathId> {
        let depth = self.0.get(parent.0 as usize).map_or(0, |node| node.depth) + 1;
        let id = u32::try_from(self.0.len()).ok()?;
        (depth <= DEPTH_MAX).then(|| {
            self.0.push(Node { parent: parent.0, depth, name: name.into() });
            PathId(id)
        })
    }

    /// Writes the path of `id` to `out`, without leading or trailing slash; empty for the root.
    pub(super) fn compose(&self, id: PathId, out: &mut Vec<u8>) {
        out.clear();
        let chain = || {
            std::iter::successors(self.0.get(id.0 as usize), |node| {
                self.0.get(node.parent as usize)
            })
            .take_while(|node| node.depth > 0)
        };
        let len: usize = chain().map(|node| node.name.len() + 1).sum();
        out.resize(len.saturating_sub(1), b'/');
        let mut end = out.len();
        for node in chain() {
            let start = end.saturating_sub(node.name.len());
            if let Some(place) = out.get_mut(start..end) {
                place.copy_from_slice(&node.name);
            }
            end = start.saturating_sub(1);
        }
    }

    /// Returns the path of `name` in `id`, for messages.
    pub(super) fn path(&self, id: PathId, name: &[u8]) -> PathBuf {
        let mut path = Vec::new();
        self.compose(id, &mut path);
        join(&mut path, name);
        PathBuf::from(OsStr::from_bytes(&path))
    }
}

/// Appends `name` to `path`, separated by a slash if both are non-empty.
pub(super) fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_out_as_they_went_in() {
        let mut paths = Paths::new();
        let a = paths.push(Paths::ROOT, b"a").unwrap();
        let bb = paths.push(a, b"bb").unwrap();
        let c = paths.push(bb, b"\xffc").unwrap();
        let mut out = b"old".to_vec();
        for (id, expected) in
            [(Paths::ROOT, &b""[..]), (a, b"a"), (bb, b"a/bb"), (c, b"a/bb/\xffc")]
        {
            paths.compose(id, &mut out);
            assert_eq!(out, expected);
        }
        assert_eq!(paths.path(Paths::ROOT, b"x"), PathBuf::from("x"));
        assert_eq!(paths.path(bb, b"x"), PathBuf::from("a/bb/x"));
    }

    #[test]
    fn depth_has_an_end() {
        let mut paths = Paths::new();
        let mut at = Paths::ROOT;
        for _ in 0..DEPTH_MAX {
            at = paths.push(at, b"d").unwrap();
        }
        assert_eq!(paths.push(at, b"d"), None);
    }
}
