//! Builds a directory tree in memory: importers fill it, and the index writer reads it.
//!
//! All nodes, entries and names live in flat tables addressed by 32-bit numbers, because an image
//! may have a million files: an entry costs about 120 bytes plus its name. Limits are checked as
//! the tree grows, so that a hostile source fails with an error instead of exhausting memory.

use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

use crate::format::layout::{
    NAME_LEN_MAX, SYMLINK_LEN_MAX, XATTR_LIST_LEN_MAX, XATTR_VALUE_LEN_MAX,
};
use crate::format::xattrs::{XattrSet, Xattrs, write_set};
use crate::format::{Device, FileKind, Timestamp};
use crate::pack::Content;

/// An error from changing a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Empty, `.`, `..`, contains `/` or NUL, or longer than 255 bytes.
    #[error("'{}' is not a file name", .0.escape_ascii())]
    Name(Box<[u8]>),
    /// The target of a symbolic link is empty, longer than 4095 bytes, or contains NUL.
    #[error("a symbolic link's target is empty, too long or has a NUL")]
    Symlink,
    /// An extended attribute that Linux would refuse.
    #[error("the extended attribute '{}' is larger than Linux allows, or has no valid name",
        .0.escape_ascii())]
    Xattr(Box<[u8]>),
    /// The tree exceeds a limit.
    #[error("the tree has more than {limit} {what}")]
    Limit {
        /// The resource that is limited.
        what: &'static str,
        /// The maximum.
        limit: u64,
    },
    /// The parent node is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A hard link to a directory.
    #[error("a directory can't have a second name")]
    LinkToDirectory,
}

/// Limits on the size of a tree.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Entries, including the root.
    pub entries: u32,
    /// Total bytes of names, link targets, inline files and attributes.
    pub heap_bytes: u64,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { entries: 16_000_000, heap_bytes: 2 << 30 }
    }
}

/// An extended attribute: its full name (`user.note`) and its value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

/// The metadata that every inode has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// The low 12 bits of `st_mode`.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes in any order; of equal names, the last wins.
    pub xattrs: Vec<Xattr>,
}

/// The type of an inode, with the fields that only this type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file of `size` bytes.
    Regular {
        /// Length in bytes.
        size: u64,
        /// Location of the bytes.
        content: Content,
    },
    /// A directory.
    Directory,
    /// A symbolic link to a target of 1 to 4095 bytes.
    Symlink(Box<[u8]>),
    /// A character device node.
    CharDevice(Device),
    /// A block device node.
    BlockDevice(Device),
    /// A FIFO.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

impl NodeKind {
    /// Returns the type without its fields.
    pub fn file_kind(&self) -> FileKind {
        match self {
            Self::Regular { .. } => FileKind::Regular,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
        }
    }
}

/// The number of an inode in a tree. Stable for the lifetime of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// Returns the number as an index into side tables.
    pub const fn place(self) -> usize {
        self.0 as usize
    }
}

/// The end of a list of entries.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// 0 for none, or 1 plus the number of the attribute set.
    pub(crate) xattrs: u32,
    pub(crate) kind: NodeKind,
    /// Number of names (links); 1 for a directory, including the root.
    pub(crate) names: u32,
    /// The newest entry of a directory, or `NONE`. Removed entries stay in the list.
    first_entry: u32,
}

#[derive(Debug)]
struct DirEntry {
    parent: u32,
    node: u32,
    /// Offset in `Tree::names`.
    name: u64,
    name_len: u8,
    /// False once removed. Entries are never reused.
    live: bool,
    /// The next older entry of the same directory, or `NONE`.
    next: u32,
}

/// A directory tree in memory, without the bytes of its files.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    entries: Vec<DirEntry>,
    names: Vec<u8>,
    /// The numbers of live entries, by directory and name.
    by_name: HashTable<u32>,
    hasher: RandomState,
    xattr_sets: Vec<Box<[u8]>>,
    /// Positions in `xattr_sets`, by content.
    xattr_places: HashTable<u32>,
    limits: TreeLimits,
    heap_bytes: u64,
}

impl Tree {
    /// Creates a tree that has only a root: mode 0755, owned by root, mtime 0.
    pub fn new(limits: TreeLimits) -> Self {
        let root = Node {
            perm: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: 0,
            kind: NodeKind::Directory,
            names: 1,
            first_entry: NONE,
        };
        Self {
            nodes: vec![root],
            entries: Vec::new(),
            names: Vec::new(),
            by_name: HashTable::new(),
            hasher: RandomState::new(),
            xattr_sets: Vec::new(),
            xattr_places: HashTable::new(),
            limits,
            heap_bytes: 0,
        }
    }

    /// Returns the node that `name` refers to in `dir`.
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.find_entry(dir.0, name)
            .and_then(|e| self.entries.get(e as usize))
            .map(|e| NodeId(e.node))
    }

    /// Returns the type of `node`, or a directory's if `node` belongs to another tree.
    pub fn kind(&self, node: NodeId) -> &NodeKind {
        self.nodes.get(node.place()).map_or(&NodeKind::Directory, |n| &n.kind)
    }

    /// Returns the number of inodes ever created, including removed ones. All ids are below it.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Creates an inode as `name` in `dir`. Replaces an existing entry and everything below it.
    pub fn insert(
        &mut self,
        dir: NodeId,
        name: &[u8],
        meta: Meta,
        kind: NodeKind,
    ) -> Result<NodeId, TreeError> {
        self.check_place(dir, name)?;
        if let NodeKind::Symlink(target) = &kind {
            if target.is_empty() || target.len() > SYMLINK_LEN_MAX || target.contains(&0) {
                return Err(TreeError::Symlink);
            }
            self.grow_heap(target.len())?;
        }
        if let NodeKind::Regular { content: Content::Inline(bytes), .. } = &kind {
            self.grow_heap(bytes.len())?;
        }
        let xattrs = self.intern_xattrs(meta.xattrs)?;
        let id = self.next_place(self.nodes.len())?;
        self.nodes.push(Node {
            perm: meta.perm & 0o7777,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            xattrs,
            kind,
            names: 0,
            first_entry: NONE,
        });
        self.add_name(dir, name, id)?;
        Ok(NodeId(id))
    }

    /// Adds a hard link to `target`, which must not be a directory. Replaces an existing entry.
    pub fn link(&mut self, dir: NodeId, name: &[u8], target: NodeId) -> Result<(), TreeError> {
        self.check_place(dir, name)?;
        if matches!(self.kind(target), NodeKind::Directory) {
            return Err(TreeError::LinkToDirectory);
        }
        if self.child(dir, name) == Some(target) {
            return Ok(());
        }
        self.add_name(dir, name, target.0)
    }

    /// Removes the entry `name` and everything below it. Returns false if no such entry exists.
    pub fn remove(&mut self, dir: NodeId, name: &[u8]) -> bool {
        let Some(entry) = self.find_entry(dir.0, name) else { return false };
        let mut doomed = vec![entry];
        while let Some(entry) = doomed.pop() {
            let Some((parent, node, name)) = self.entry_name(entry) else { continue };
            let hash = self.hash_name(parent, &name);
            if let Ok(found) = self.by_name.find_entry(hash, |&e| e == entry) {
                found.remove();
            }
            if let Some(e) = self.entries.get_mut(entry as usize) {
                e.live = false;
            }
            let Some(n) = self.nodes.get_mut(node as usize) else { continue };
            n.names = n.names.saturating_sub(1);
            let mut next = n.first_entry;
            while let Some(e) = self.entries.get(next as usize) {
                if e.live {
                    doomed.push(next);
                }
                next = e.next;
            }
        }
        true
    }

    /// Replaces the metadata of `node`.
    pub fn set_meta(&mut self, node: NodeId, meta: Meta) -> Result<(), TreeError> {
        let xattrs = self.intern_xattrs(meta.xattrs)?;
        if let Some(n) = self.nodes.get_mut(node.place()) {
            n.perm = meta.perm & 0o7777;
            n.uid = meta.uid;
            n.gid = meta.gid;
            n.mtime = meta.mtime;
            n.xattrs = xattrs;
        }
        Ok(())
    }

    /// Returns the metadata of `node`, with its attributes sorted by name.
    pub fn meta(&self, node: NodeId) -> Meta {
        let Some(n) = self.nodes.get(node.place()) else { return Meta::default() };
        let set = self.xattr_set(n.xattrs);
        let xattrs = set
            .and_then(|bytes| XattrSet::parse(bytes, 0).ok())
            .map_or(Xattrs::none(), Xattrs::new)
            .iter()
            .filter_map(Result::ok)
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Meta { perm: n.perm, uid: n.uid, gid: n.gid, mtime: n.mtime, xattrs }
    }

    /// Sets the location of the bytes of the regular file `node`. A no-op for other types.
    pub fn set_content(&mut self, node: NodeId, content: Content) -> Result<(), TreeError> {
        if let Content::Inline(bytes) = &content {
            self.grow_heap(bytes.len())?;
        }
        let kind = self.nodes.get_mut(node.place()).map(|n| &mut n.kind);
        if let Some(NodeKind::Regular { content: place, .. }) = kind {
            *place = content;
        }
        Ok(())
    }

    /// Iterates over the entries of `dir`, newest first.
    pub fn entries(&self, dir: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let mut next = self.nodes.get(dir.place()).map_or(NONE, |n| n.first_entry);
        std::iter::from_fn(move || {
            loop {
                let entry = self.entries.get(next as usize)?;
                next = entry.next;
                if entry.live {
                    return Some((self.name_of(entry), NodeId(entry.node)));
                }
            }
        })
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.place())
    }

    fn name_of(&self, entry: &DirEntry) -> &[u8] {
        let start = usize::try_from(entry.name).unwrap_or(usize::MAX);
        self.names.get(start..start.saturating_add(entry.name_len.into())).unwrap_or(&[])
    }

    fn entry_name(&self, entry: u32) -> Option<(u32, u32, Vec<u8>)> {
        let entry = self.entries.get(entry as usize)?;
        Some((entry.parent, entry.node, self.name_of(entry).to_vec()))
    }

    fn hash_name(&self, dir: u32, name: &[u8]) -> u64 {
        self.hasher.hash_one((dir, name))
    }

    fn find_entry(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.by_name
            .find(self.hash_name(dir, name), |&e| {
                self.entries
                    .get(e as usize)
                    .is_some_and(|entry| entry.parent == dir && self.name_of(entry) == name)
            })
            .copied()
    }

    fn check_place(&self, dir: NodeId, name: &[u8]) -> Result<(), TreeError> {
        if name.is_empty()
            || name.len() > NAME_LEN_MAX
            || matches!(name, b"." | b"..")
            || name.iter().any(|b| matches!(b, 0 | b'/'))
        {
            return Err(TreeError::Name(name.iter().copied().take(300).collect()));
        }
        match self.nodes.get(dir.place()) {
            Some(Node { kind: NodeKind::Directory, .. }) => Ok(()),
            _ => Err(TreeError::NotADirectory),
        }
    }

    fn next_place(&self, len: usize) -> Result<u32, TreeError> {
        u32::try_from(len)
            .ok()
            .filter(|&place| place < self.limits.entries)
            .ok_or(TreeError::Limit { what: "entries", limit: self.limits.entries.into() })
    }

    fn grow_heap(&mut self, by: usize) -> Result<(), TreeError> {
        let limit = self.limits.heap_bytes;
        let grown = self.heap_bytes.saturating_add(by as u64);
        if grown > limit {
            return Err(TreeError::Limit { what: "bytes of names, links and attributes", limit });
        }
        self.heap_bytes = grown;
        Ok(())
    }

    fn add_name(&mut self, dir: NodeId, name: &[u8], node: u32) -> Result<(), TreeError> {
        let place = self.next_place(self.entries.len())?;
        self.grow_heap(name.len())?;
        if self.by_name.len() + 1 > self.by_name.capacity() {
            self.reserve_names();
        }
        self.remove(dir, name);
        let start = self.names.len() as u64;
        self.names.extend_from_slice(name);
        let next = self.nodes.get(dir.place()).map_or(NONE, |n| n.first_entry);
        // `check_place` has rejected names longer than 255 bytes.
        let name_len = u8::try_from(name.len()).unwrap_or(u8::MAX);
        self.entries.push(DirEntry {
            parent: dir.0,
            node,
            name: start,
            name_len,
            live: true,
            next,
        });
        if let Some(parent) = self.nodes.get_mut(dir.place()) {
            parent.first_entry = place;
        }
        if let Some(node) = self.nodes.get_mut(node as usize) {
            node.names += 1;
        }
        let hash = self.hash_name(dir.0, name);
        // The table cannot grow here, because `reserve_names` made room: the closure that rehashes,
        // which would be wrong for other entries, is never called.
        self.by_name.insert_unique(hash, place, |_| hash);
        Ok(())
    }

    /// Doubles the capacity of `by_name`.
    fn reserve_names(&mut self) {
        let more = self.by_name.len().max(1024);
        let mut table = std::mem::take(&mut self.by_name);
        table.reserve(more, |&e| {
            self.entries
                .get(e as usize)
                .map_or(0, |entry| self.hash_name(entry.parent, self.name_of(entry)))
        });
        self.by_name = table;
    }

    /// Returns 1 plus the number of the attribute set, adding the set if it is new; 0 for an empty
    /// set.
    fn intern_xattrs(&mut self, mut attributes: Vec<Xattr>) -> Result<u32, TreeError> {
        if attributes.is_empty() {
            return Ok(0);
        }
        // The sort is stable, so the last of equal names ends up last. `dedup_by` keeps the first
        // of a run, so reverse around it to keep the last.
        attributes.sort_by(|a, b| a.0.cmp(&b.0));
        attributes.reverse();
        attributes.dedup_by(|a, b| a.0 == b.0);
        attributes.reverse();
        let mut names = 0;
        for (name, value) in &attributes {
            names += name.len() + 1;
            let valid = (1..=NAME_LEN_MAX).contains(&name.len())
                && !name.contains(&0)
                && value.len() <= XATTR_VALUE_LEN_MAX
                && names <= XATTR_LIST_LEN_MAX;
            if !valid {
                return Err(TreeError::Xattr(name.iter().copied().take(300).collect()));
            }
        }
        let mut set = Vec::new();
        write_set(&attributes, &mut set);
        let hash = self.hasher.hash_one(set.as_slice());
        let sets = &self.xattr_sets;
        let known = self.xattr_places.find(hash, |&place| stored(sets, place) == set);
        if let Some(place) = known {
            return Ok(place + 1);
        }
        // Before the tables change, because it can fail.
        self.grow_heap(set.len())?;
        let place = u32::try_from(self.xattr_sets.len()).unwrap_or(u32::MAX - 1);
        let (hasher, sets) = (&self.hasher, &self.xattr_sets);
        self.xattr_places.insert_unique(hash, place, |&other| hasher.hash_one(stored(sets, other)));
        self.xattr_sets.push(set.into());
        Ok(place + 1)
    }

    /// Returns the encoded attribute set with number `xattrs`, in the format of an index.
    pub(crate) fn xattr_set(&self, xattrs: u32) -> Option<&[u8]> {
        self.xattr_sets.get(xattrs.checked_sub(1)? as usize).map(AsRef::as_ref)
    }
}

/// Returns the encoded attribute set at `place`.
fn stored(sets: &[Box<[u8]>], place: u32) -> &[u8] {
    sets.get(place as usize).map_or(&[], |set| set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_set_that_exceeds_the_limit_leaves_nothing_behind() {
        let mut tree = Tree::new(TreeLimits { heap_bytes: 40, ..TreeLimits::default() });
        let meta = |value: &[u8]| Meta {
            xattrs: vec![(b"user.a".as_slice().into(), value.into())],
            ..Meta::default()
        };
        let refused = tree.insert(NodeId::ROOT, b"a", meta(&[7; 100]), NodeKind::Fifo);
        assert!(matches!(refused, Err(TreeError::Limit { limit: 40, .. })), "{refused:?}");
        assert_eq!((tree.xattr_places.len(), tree.xattr_sets.len()), (0, 0));
        let node = tree.insert(NodeId::ROOT, b"a", meta(b"1"), NodeKind::Fifo).unwrap();
        assert_eq!(tree.meta(node), meta(b"1"));
    }
}
