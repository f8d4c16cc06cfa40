//! Walks an index's tree with what an export needs: paths, attributes, and which name of an inode
//! is its first.
//!
//! The index is not trusted. Its own walk lets no directory have two places; here an inode has no
//! more names than it says, there are no more entries than the index has records of them (a run of
//! entries that many directories share would give far more), and the tree is not too deep.

use std::collections::HashMap;

use inlay_store::format::{Attr, FileKind, FormatError, Index, InodeIdx, walk};

use super::error::{ExportError, shown};

/// How deep a tree may be. Linux resolves no path of more than 2048 components.
pub(super) const DEPTH_MAX: usize = 4096;

/// Where an inode was first found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) dir: InodeIdx,
    pub(super) name: &'a [u8],
}

/// An object below the root, and what `stat` tells of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) inode: InodeIdx,
    pub(super) place: Place<'a>,
    pub(super) attr: Attr,
}

/// What a walk meets, in the order of names: a directory, what is in it, its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    /// A directory begins.
    Enter(Node<'a>),
    /// The directory that was entered last and not yet left is done.
    Leave(Node<'a>),
    /// Something that is no directory, at its first name.
    Node(Node<'a>),
    /// One more name of what was already met at `first`.
    Link { node: Node<'a>, first: Place<'a> },
}

/// A walk that is under way: everything below the root.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    index: &'a Index,
    inner: Option<walk::Walk<'a>>,
    above: Vec<Node<'a>>,
    path: Vec<u8>,
    /// How much of `path` is the directory that is being walked.
    dir_len: usize,
    dirs: HashMap<InodeIdx, Place<'a>>,
    linked: HashMap<InodeIdx, (Place<'a>, u32)>,
    entries_left: u32,
}

impl<'a> Walk<'a> {
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

    /// The root, with an empty name.
    pub(super) fn root(&self) -> Result<Node<'a>, ExportError> {
        let inode = InodeIdx::ROOT;
        let attr = self.index.attr(inode).map_err(|e| self.wrong(e))?;
        Ok(Node { inode, place: Place { dir: inode, name: &[] }, attr })
    }

    /// The path of what the last step met, without a leading slash.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The next step; `None` at the end.
    pub(super) fn step(&mut self) -> Result<Option<Step<'a>>, ExportError> {
        self.advance().map_err(|source| self.wrong(source))
    }

    /// An error of the index, with the path where it was found.
    pub(super) fn wrong(&self, source: FormatError) -> ExportError {
        ExportError::Index { path: shown(&self.path), source }
    }

    /// The names from the root down to `place`, which was met.
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

    fn advance(&mut self) -> Result<Option<Step<'a>>, FormatError> {
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
                    // Its name, and the slash before it unless it is right below the root.
                    self.dir_len = self.path.len().saturating_sub(left.place.name.len() + 1);
                }
                return Ok(left.map(Step::Leave));
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

    fn enter(&mut self, node: Node<'a>) -> Result<Step<'a>, FormatError> {
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
        Ok(Step::Enter(node))
    }

    fn leaf(&mut self, node: Node<'a>) -> Result<Step<'a>, FormatError> {
        // A file with one name can be met twice only if the index lies; then its copies are its
        // own harm, and `entries_left` bounds them.
        if node.attr.nlink < 2 {
            return Ok(Step::Node(node));
        }
        match self.linked.get_mut(&node.inode) {
            None => {
                self.linked.insert(node.inode, (node.place, node.attr.nlink - 1));
                Ok(Step::Node(node))
            }
            Some((first, left)) if *left > 0 => {
                *left -= 1;
                Ok(Step::Link { node, first: *first })
            }
            Some(_) => Err(corrupt("an inode with more names than it says", node.inode)),
        }
    }
}

fn corrupt(what: &'static str, inode: InodeIdx) -> FormatError {
    FormatError::Corrupt { what, at: inode.0.into() }
}
