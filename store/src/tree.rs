//! A tree under construction: what an importer fills and what an index is written from.
//!
//! Everything is held in flat tables with 32-bit places, because an image may have a million files:
//! an entry costs about 120 bytes and its name. Limits are checked as the tree grows, so that a
//! hostile source gets an error instead of the machine's memory.

use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

use crate::format::layout::{
    NAME_LEN_MAX, SYMLINK_LEN_MAX, XATTR_LIST_LEN_MAX, XATTR_VALUE_LEN_MAX,
};
use crate::format::xattrs::{XattrSet, Xattrs, write_set};
use crate::format::{Device, FileKind, Timestamp};
use crate::pack::Content;

/// Why something can't be put into a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Empty, `.`, `..`, with a `/` or NUL, or longer than 255 bytes.
    #[error("'{}' is no name for a file", .0.escape_ascii())]
    Name(Box<[u8]>),
    /// A symbolic link's target is empty, longer than 4095 bytes, or has a NUL.
    #[error("a symbolic link's target is empty, too long or has a NUL")]
    Symlink,
    /// An extended attribute that Linux would refuse.
    #[error("the extended attribute '{}' is larger than Linux allows, or has no valid name",
        .0.escape_ascii())]
    Xattr(Box<[u8]>),
    /// More of something than the limits allow.
    #[error("the tree has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// A directory was asked for, and this is none.
    #[error("not a directory")]
    NotADirectory,
    /// A hard link to a directory.
    #[error("a directory can't have a second name")]
    LinkToDirectory,
}

/// How large a tree may grow.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Entries, the root among them.
    pub entries: u32,
    /// Bytes of names, link targets, inline files and attributes together.
    pub heap_bytes: u64,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { entries: 16_000_000, heap_bytes: 2 << 30 }
    }
}

/// An extended attribute: its whole name (`user.note`) and its value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

/// What every inode has.
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
    /// Extended attributes in any order, the last of equal names counts.
    pub xattrs: Vec<Xattr>,
}

/// What an inode is, with what only its kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file of `size` bytes.
    Regular {
        /// In bytes.
        size: u64,
        /// Where they are.
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
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

impl NodeKind {
    /// Its kind alone.
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

/// The place of an inode in a tree. Stays the same as long as the tree lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// As an index into side tables.
    pub const fn place(self) -> usize {
        self.0 as usize
    }
}

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// 0, or one more than the number of its set of attributes.
    pub(crate) xattrs: u32,
    pub(crate) kind: NodeKind,
    /// Names that it has; a directory has one, the root too.
    pub(crate) names: u32,
    first_entry: u32,
}

#[derive(Debug)]
struct Entry {
    parent: u32,
    node: u32,
    name: u64,
    name_len: u8,
    live: bool,
    next: u32,
}

/// A directory tree in memory, without the files' bytes.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    entries: Vec<Entry>,
    names: Vec<u8>,
    by_name: HashTable<u32>,
    hasher: RandomState,
    xattr_sets: Vec<Box<[u8]>>,
    xattr_places: HashTable<u32>,
    limits: TreeLimits,
    heap_bytes: u64,
}

impl Tree {
    /// A tree with nothing but its root: mode 0755, owned by root, of 1970.
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

    /// What `name` is in `dir`.
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.find_entry(dir.0, name)
            .and_then(|e| self.entries.get(e as usize))
            .map(|e| NodeId(e.node))
    }

    /// What `node` is. The root's kind for an id of another tree.
    pub fn kind(&self, node: NodeId) -> &NodeKind {
        self.nodes.get(node.place()).map_or(&NodeKind::Directory, |n| &n.kind)
    }

    /// How many inodes were ever made; ids are below it.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Puts a new inode at `name` in `dir`. What stood there goes, with all below it.
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

    /// Gives `target`, which is not a directory, one more name. What stood there goes.
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

    /// Takes the entry `name` and all below it away. False if there is none.
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

    /// Gives `node` other metadata.
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

    /// The metadata of `node`, its attributes in order of their names.
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

    /// Says where the bytes of the regular file `node` are; nothing happens to other kinds.
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

    /// The names in `dir` and what they name, newest first.
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

    fn name_of(&self, entry: &Entry) -> &[u8] {
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
        self.heap_bytes = self.heap_bytes.saturating_add(by as u64);
        if self.heap_bytes > limit {
            return Err(TreeError::Limit { what: "bytes of names, links and attributes", limit });
        }
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
        // `check_place` has made sure that the name has at most 255 bytes.
        let name_len = u8::try_from(name.len()).unwrap_or(u8::MAX);
        self.entries.push(Entry { parent: dir.0, node, name: start, name_len, live: true, next });
        if let Some(parent) = self.nodes.get_mut(dir.place()) {
            parent.first_entry = place;
        }
        if let Some(node) = self.nodes.get_mut(node as usize) {
            node.names += 1;
        }
        let hash = self.hash_name(dir.0, name);
        // Never grows here: room was made above, so the rehashing function is not called.
        self.by_name.insert_unique(hash, place, |_| hash);
        Ok(())
    }

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

    fn intern_xattrs(&mut self, mut attributes: Vec<Xattr>) -> Result<u32, TreeError> {
        if attributes.is_empty() {
            return Ok(0);
        }
        // Stable, so that of equal names the last given comes last; then the others go.
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
        let stored = |place: &u32| self.xattr_sets.get(*place as usize).map_or(&[][..], |s| s);
        if let Some(place) = self.xattr_places.find(hash, |place| stored(place) == set) {
            return Ok(place + 1);
        }
        let place = u32::try_from(self.xattr_sets.len()).unwrap_or(u32::MAX - 1);
        let hasher = &self.hasher;
        self.xattr_places.insert_unique(hash, place, |other| hasher.hash_one(stored(other)));
        self.grow_heap(set.len())?;
        self.xattr_sets.push(set.into());
        Ok(place + 1)
    }

    /// The bytes of the set of attributes that a node names, as they stand in an index.
    pub(crate) fn xattr_set(&self, xattrs: u32) -> Option<&[u8]> {
        self.xattr_sets.get(xattrs.checked_sub(1)? as usize).map(AsRef::as_ref)
    }
}
