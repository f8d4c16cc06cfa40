//! Resolves a path in a snapshot, following symbolic links inside it.

use inlay_store::format::{FileKind, FormatError, Index, InodeIdx};

/// Maximum symbolic links followed, as in Linux.
const LINKS_MAX: u32 = 40;

/// Whether to follow a symbolic link in the last component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// Resolve it to its target.
    Follow,
    /// Return the link itself.
    Keep,
}

/// The reason a path does not resolve.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The path does not exist in the snapshot.
    #[error("{0}")]
    NotThere(&'static str),
    /// The index is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Resolves `path` to an inode, as Linux does. Links are confined to the snapshot: `/` is its root.
pub fn find(index: &Index, path: &[u8], last: LastLink) -> Result<InodeIdx, FindError> {
    let mut links = 0;
    // Remaining names, in reverse order.
    let mut rest: Vec<Vec<u8>> = names(path);
    let mut way = vec![InodeIdx::ROOT];
    while let Some(name) = rest.pop() {
        let dir = way.last().copied().unwrap_or(InodeIdx::ROOT);
        // Also before `.` and `..`, which a file does not have.
        if index.attr(dir)?.kind != FileKind::Directory {
            return Err(FindError::NotThere("a part of the path is not a directory"));
        }
        match &name[..] {
            b"." => continue,
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        let inode = index.lookup(dir, &name)?;
        let inode = inode.ok_or(FindError::NotThere("no such file or directory"))?;
        let is_last = rest.is_empty() && last == LastLink::Keep;
        if index.attr(inode)?.kind != FileKind::Symlink || is_last {
            way.push(inode);
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(FindError::NotThere("too many symbolic links"));
        }
        let target = index.symlink(inode)?;
        if target.starts_with(b"/") {
            way.truncate(1);
        }
        rest.extend(names(target));
    }
    Ok(way.last().copied().unwrap_or(InodeIdx::ROOT))
}

/// Splits a path into names, in reverse order. A trailing slash stands for `/.`: only a directory,
/// or a link to one, resolves.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let last = path.ends_with(b"/").then_some(&b"."[..]);
    path.split(|b| *b == b'/')
        .filter(|name| !name.is_empty())
        .chain(last)
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_images::export::testing::{Builder, meta};
    use inlay_store::tree::{NodeId, NodeKind};

    #[test]
    fn paths_resolve_as_in_linux() {
        let mut builder = Builder::new();
        let dir = builder.dir(NodeId::ROOT, b"dir");
        builder.file(dir, b"file", meta(0o644), 1, &[]);
        for (name, target) in
            [(&b"to-dir"[..], &b"dir/"[..]), (b"to-file", b"/dir/file"), (b"wrong", b"dir/file/")]
        {
            let link = NodeKind::Symlink(target.into());
            builder.tree.insert(NodeId::ROOT, name, meta(0o777), link).unwrap();
        }
        let index = builder.finish(b"").index;
        let at = |path: &str, last| find(&index, path.as_bytes(), last);
        let [root, dir, file] =
            ["", "dir", "dir/file"].map(|path| at(path, LastLink::Keep).unwrap());
        for (path, inode) in [
            ("/", root),
            (".", root),
            ("..", root),
            ("dir/..", root),
            ("dir/.", dir),
            ("dir//", dir),
            ("to-dir", dir),
            ("to-dir/.//file", file),
            ("to-dir/../to-file", file),
        ] {
            assert_eq!(at(path, LastLink::Follow).unwrap(), inode, "{path}");
        }
        for path in [
            "dir/file/..",
            "dir/file/.",
            "dir/file/",
            "dir/file/../file",
            "to-file/..",
            "to-file/",
            "wrong",
            "wrong/../dir",
        ] {
            let error = at(path, LastLink::Follow).unwrap_err().to_string();
            assert!(error.contains("not a directory"), "{path}: {error}");
        }
        let link = at("to-dir", LastLink::Keep).unwrap();
        assert_eq!(index.attr(link).unwrap().kind, FileKind::Symlink);
        assert_eq!(at("to-dir/", LastLink::Keep).unwrap(), dir);
    }
}
