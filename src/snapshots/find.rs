//! Finds the object that a path in a snapshot means, following symbolic links inside the snapshot.

use inlay_store::format::{FileKind, FormatError, Index, InodeIdx};

/// How many symbolic links a path may lead through, as in Linux.
const LINKS_MAX: u32 = 40;

/// Whether a symbolic link at the path's end is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// It stands for what it points to.
    Follow,
    /// It stands for itself.
    Keep,
}

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The snapshot has nothing there.
    #[error("{0}")]
    NotThere(&'static str),
    /// The index.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// The inode behind `path`. Links lead nowhere outside the snapshot: `/` is its root.
pub fn find(index: &Index, path: &[u8], last: LastLink) -> Result<InodeIdx, FindError> {
    let mut links = 0;
    // What is still to be walked, the next name last.
    let mut rest: Vec<Vec<u8>> = names(path);
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
            return Err(FindError::NotThere("a part of the path is not a directory"));
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

/// The names of a path, the first one last.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
}
