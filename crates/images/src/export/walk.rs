//! Walks an index's tree for an export: paths, attributes, and the first name of each inode.
//!
//! The index is untrusted. Its own walk ensures that no directory has two parents. This walk
//! ensures that an inode has no more names than its link count, that there are no more entries than
//! the index has entry records (directories that share a run of entries would yield far more), and
//! that the depth is bounded.

use std::collections::HashMap;

use inlay_store::format::{Attr, FileKind, FormatError, Index, InodeIdx, walk};

use super::error::{ExportError, escaped};

/// Maximum depth of a tree. Linux resolves no path of more than 2048 components.
pub(super) const DEPTH_MAX: usize = 4096;

/// First name of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) dir: InodeIdx,
    pub(super) name: &'a [u8],
}

/// An object below the root with its `stat` attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) inode: InodeIdx,
    pub(super) place: Place<'a>,
    pub(super) attr: Attr,
}

/// A step of the walk, in the order of names: a directory's entries come between its `Enter` and
/// `Leave`.
#[derive(Debug, Clone, Copy)]
pub(super) enum WalkStep<'a> {
    /// Enters a directory.
    Enter(Node<'a>),
    /// Leaves the directory entered last.
    Leave(Node<'a>),
    /// A non-directory at its first name.
    Node(Node<'a>),
    /// A further name of an inode first seen at `first`.
    Link { node: Node<'a>, first: Place<'a> },
}

/// A depth-first walk of everything below the root.
#[derive(Debug)]
pub(super) struct IndexWalk<'a> {
    index: &'a Index,
    inner: Option<walk::Walk<'a>>,
    above: Vec<Node<'a>>,
    path: Vec<u8>,
    /// Length of the current directory's path in `path`.
    dir_len: usize,
    dirs: HashMap<InodeIdx, Place<'a>>,
    linked: HashMap<InodeIdx, (Place<'a>, u32)>,
    entries_left: u32,
}

impl<'a> IndexWalk<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        Self {
            index,
            inner: None,
            above: Vec::new(),
            path: Vec::new(),
            dir_len: 0,
            dirs: HashMap::new(),
            linked: HashMap::new(),
            entries_left: index.entry_count(),
        }
    }

    /// Returns the root, with an empty name.
    pub(super) fn root(&self) -> Result<Node<'a>, ExportError> {
        let inode = InodeIdx::ROOT;
        let attr = self.index.attr(inode).map_err(|e| self.wrong(e))?;
        Ok(Node { inode, place: Place { dir: inode, name: &[] }, attr })
    }

    /// Path of the last step's object, without a leading slash.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Returns the next step; `None` at the end.
    pub(super) fn step(&mut self) -> Result<Option<WalkStep<'a>>, ExportError> {
        self.advance().map_err(|source| self.wrong(source))
    }

    /// Adds the current path to an error of the index.
    pub(super) fn wrong(&self, source: FormatError) -> ExportError {
        ExportError::Index { path: escaped(&self.path), source }
    }

    /// Returns the names from the root to `place`, which the walk has visited.
    pub(super) fn names_to(&self, place: Place<'a>) -> Vec<&'a [u8]> {
        let mut names = vec![place.name];
        let mut dir = place.dir;
        while let Some(above) = self.dirs.get(&dir).filter(|_| names.len() <= DEPTH_MAX) {
            names.push(above.name);
            dir = above.dir;
        }
        names.reverse();
        names
    }

    fn advance(&mut self) -> Result<Option<WalkStep<'a>>, FormatError> {
        self.path.truncate(self.dir_len);
        let inner = match &mut self.inner {
            Some(inner) => inner,
            none => none.insert(walk::Walk::new(self.index, InodeIdx::ROOT)?),
        };
        let entry = match inner.next().transpose()? {
            None => return Ok(None),
            Some(walk::Step::Leave { .. }) => {
                let left = self.above.pop();
                if let Some(left) = left {
                    // Its name, and the slash before it unless it is a direct child of the root.
                    self.dir_len = self.path.len().saturating_sub(left.place.name.len() + 1);
                }
                return Ok(left.map(WalkStep::Leave));
            }
            Some(walk::Step::Entry { entry, .. }) => entry,
        };
        self.entries_left = self
            .entries_left
            .checked_sub(1)
            .ok_or_else(|| corrupt("directories that share their entries", entry.inode))?;
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(entry.name);
        let attr = self.index.attr(entry.inode)?;
        if attr.kind != entry.kind {
            return Err(corrupt("an entry and its inode differ in type", entry.inode));
        }
        let dir = self.above.last().map_or(InodeIdx::ROOT, |above| above.inode);
        let place = Place { dir, name: entry.name };
        let node = Node { inode: entry.inode, place, attr };
        if entry.kind == FileKind::Directory {
            return self.enter(node).map(Some);
        }
        self.leaf(node).map(Some)
    }

    fn enter(&mut self, node: Node<'a>) -> Result<WalkStep<'a>, FormatError> {
        self.above.push(node);
        if self.above.len() > DEPTH_MAX {
            return Err(FormatError::TooLarge {
                what: "the depth of the tree",
                found: self.above.len() as u64,
                limit: DEPTH_MAX as u64,
            });
        }
        self.dir_len = self.path.len();
        self.dirs.insert(node.inode, node.place);
        Ok(WalkStep::Enter(node))
    }

    fn leaf(&mut self, node: Node<'a>) -> Result<WalkStep<'a>, FormatError> {
        // Only a forged index contains a single-link file twice. Its copies harm only its own
        // export, and `entries_left` bounds them.
        if node.attr.nlink < 2 {
            return Ok(WalkStep::Node(node));
        }
        match self.linked.get_mut(&node.inode) {
            None => {
                self.linked.insert(node.inode, (node.place, node.attr.nlink - 1));
                Ok(WalkStep::Node(node))
            }
            Some((first, left)) if *left > 0 => {
                *left -= 1;
                Ok(WalkStep::Link { node, first: *first })
            }
            Some(_) => Err(corrupt("an inode with more names than it says", node.inode)),
        }
    }
}

fn corrupt(what: &'static str, inode: InodeIdx) -> FormatError {
    FormatError::Corrupt { what, at: inode.0.into() }
}
