//! Writes an index from a finished tree and the groups that hold the bytes of its files.
//!
//! The order of all records depends only on the tree and its contents, so importing the same tree
//! twice produces the same index and the same id. Inodes are numbered directory by directory, depth
//! first: the children of a directory are contiguous, and so are the pages that a walk of a subtree
//! touches. Inode and extent records are written as they are created and are not buffered.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufWriter, Write};

use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};
use zerocopy::IntoBytes;

use super::layout::{
    CONFIG_LEN_MAX, DataTag, FEATURE_DECODED, INDEX_MAGIC, INDEX_VERSION, RawBlob, RawDirent,
    RawExtent, RawGroup, RawHeader, RawInode, RawSection, SECTIONS, Section,
};
use super::model::{Blob, FileKind, InodeIdx};
use crate::ids::{Digest, Kind};
use crate::pack::{Content, PackedExtent, PackedGroups, Pieces};
use crate::tree::{Node, NodeId, NodeKind, Tree};

/// An error from writing an index.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output could not be written.
    #[error("writing the index: {0}")]
    Io(#[from] io::Error),
    /// The snapshot exceeds a limit of the format.
    #[error("the snapshot has more than {limit} {what}")]
    TooLarge {
        /// The resource that is limited.
        what: &'static str,
        /// The maximum.
        limit: u64,
    },
    /// A file refers to a group that was never packed: a bug in this program.
    #[error("a file refers to group {0}, which was not packed")]
    NoGroup(u32),
}

/// The parts of an index.
#[derive(Debug, Clone, Copy)]
pub struct IndexParts<'a> {
    /// The kind of the snapshot.
    pub kind: Kind,
    /// The files and directories.
    pub tree: &'a Tree,
    /// The groups that the files refer to.
    pub groups: &'a PackedGroups,
    /// The image configuration, JSON, or empty.
    pub config: &'a [u8],
}

/// Maps the nodes of a tree to the inodes of its index.
#[derive(Debug, Clone, Default)]
pub struct Numbering(Vec<u32>);

impl Numbering {
    /// Returns the inode of `node`, or `None` if the node has no name.
    pub fn inode(&self, node: NodeId) -> Option<InodeIdx> {
        self.0.get(node.place()).copied().filter(|number| *number != u32::MAX).map(InodeIdx)
    }
}

/// Writes the index to `out`. Returns its length in bytes.
pub fn write_index(parts: IndexParts<'_>, out: &mut dyn Write) -> Result<u64, WriteError> {
    Ok(write_numbered(parts, out)?.0)
}

/// Like [`write_index`], and also returns the numbering of the nodes.
pub fn write_numbered(
    parts: IndexParts<'_>,
    out: &mut dyn Write,
) -> Result<(u64, Numbering), WriteError> {
    if parts.config.len() as u64 > CONFIG_LEN_MAX {
        return Err(WriteError::TooLarge { what: "bytes of configuration", limit: CONFIG_LEN_MAX });
    }
    let plan = Plan::new(parts)?;
    let lens = plan.section_lens(parts);
    let mut out = Counted { out: BufWriter::with_capacity(1 << 20, out), len: 0 };
    let total = write_header(parts.kind, &lens, &mut out)?;
    for section in Section::ALL {
        let expected = lens.get(section as usize).copied().unwrap_or(0);
        let start = out.len;
        plan.write_section(section, parts, &mut out)?;
        debug_assert_eq!(out.len - start, expected, "{}", section.name());
        out.pad()?;
    }
    debug_assert_eq!(out.len, total);
    out.out.flush()?;
    Ok((total, Numbering(plan.inode_of)))
}

struct Counted<W: Write> {
    out: W,
    len: u64,
}

impl<W: Write> Counted<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let short = usize::try_from(self.len.next_multiple_of(8) - self.len).unwrap_or(0);
        self.put([0; 8].get(..short).unwrap_or(&[]))
    }
}

fn write_header<W: Write>(
    kind: Kind,
    lens: &[u64; SECTIONS],
    out: &mut Counted<W>,
) -> io::Result<u64> {
    let mut offset = size_of::<RawHeader>() as u64;
    let mut sections = lens.map(|len| {
        let section = RawSection { offset: offset.into(), len: len.into() };
        offset = (offset + len).next_multiple_of(8);
        section
    });
    // Without the section, the index is that of a version that does not know it.
    let mut features = FEATURE_DECODED;
    if let Some(decoded) = sections.get_mut(Section::Decoded as usize)
        && decoded.len.get() == 0
    {
        *decoded = RawSection { offset: 0.into(), len: 0.into() };
        features = 0;
    }
    let header = RawHeader {
        magic: INDEX_MAGIC,
        version: INDEX_VERSION.into(),
        kind: kind.code().into(),
        features: features.into(),
        total_len: offset.into(),
        sections,
        reserved: [0; 48],
    };
    out.put(header.as_bytes())?;
    Ok(offset)
}

/// The entries of one directory, and their position in the dirents section.
#[derive(Clone, Copy, Default)]
struct DirRun {
    first: u64,
    count: u32,
    parent: u32,
    subdirs: u32,
}

/// The order and numbering of all records.
struct Plan {
    /// Nodes ordered by inode number.
    order: Vec<NodeId>,
    /// The inode number of each node, indexed by node; `u32::MAX` for a removed node.
    inode_of: Vec<u32>,
    /// Directories only, by inode number.
    dirs: HashMap<u32, DirRun>,
    dirents: Vec<RawDirent>,
    names: Vec<u8>,
    xattrs: Vec<u8>,
    /// 1 plus the offset in `xattrs` of each attribute set in use, by the set's number in the tree.
    xattrs_at: HashMap<u32, u32>,
    extents: u64,
    inline: u64,
    contents: u64,
    /// Maps the packer's group numbers to the final ones. Contains only groups in use.
    group_of: HashMap<u32, u32>,
    groups: Vec<RawGroup>,
    /// For each of `groups`; zero if unknown. Empty if all are.
    decoded: Vec<Digest>,
    blobs: Vec<RawBlob>,
}

impl Plan {
    fn new(parts: IndexParts<'_>) -> Result<Self, WriteError> {
        let mut plan = Self {
            order: vec![NodeId::ROOT],
            inode_of: vec![u32::MAX; parts.tree.node_count()],
            dirs: HashMap::new(),
            dirents: Vec::new(),
            names: Vec::new(),
            xattrs: Vec::new(),
            xattrs_at: HashMap::new(),
            extents: 0,
            inline: 0,
            contents: 0,
            group_of: HashMap::new(),
            groups: Vec::new(),
            decoded: Vec::new(),
            blobs: Vec::new(),
        };
        if let Some(place) = plan.inode_of.first_mut() {
            *place = 0;
        }
        plan.number(parts.tree)?;
        plan.place_xattrs(parts.tree)?;
        plan.place_groups(parts)?;
        Ok(plan)
    }

    /// Numbers the inodes depth first, and lays out directory entries and names.
    fn number(&mut self, tree: &Tree) -> Result<(), WriteError> {
        let mut heap = NameHeap::new();
        let mut pending = vec![(NodeId::ROOT, 0u32, 0u32)];
        let mut entries: Vec<(&[u8], NodeId)> = Vec::new();
        while let Some((dir, inode, parent)) = pending.pop() {
            entries.clear();
            entries.extend(tree.entries(dir));
            entries.sort_unstable_by_key(|(name, _)| *name);
            let first = self.dirents.len() as u64;
            let mut subdirs = Vec::new();
            for (name, node) in &entries {
                let Some(record) = tree.node(*node) else { continue };
                let number = self.inode_number(*node)?;
                let kind = record.kind.file_kind();
                if kind == FileKind::Directory {
                    subdirs.push((*node, number, inode));
                }
                self.dirents.push(RawDirent {
                    name: heap.place(name, &mut self.names)?.into(),
                    inode: number.into(),
                    name_len: u8::try_from(name.len()).unwrap_or(u8::MAX),
                    kind: kind.code(),
                    reserved: 0.into(),
                });
            }
            let count = count("entries of a directory", entries.len())?;
            let run = DirRun { first, count, parent, subdirs: count_u32(subdirs.len()) };
            self.dirs.insert(inode, run);
            pending.extend(subdirs.into_iter().rev());
        }
        count("directory entries", self.dirents.len())?;
        Ok(())
    }

    /// Returns the inode number of a node. Assigns the next one on first use; hard links share it.
    fn inode_number(&mut self, node: NodeId) -> Result<u32, WriteError> {
        let next = count("inodes", self.order.len())?;
        match self.inode_of.get_mut(node.place()) {
            Some(number) if *number == u32::MAX => {
                *number = next;
                self.order.push(node);
                Ok(next)
            }
            Some(number) => Ok(*number),
            None => Ok(0),
        }
    }

    /// Lays out the attribute sets in use, each once.
    fn place_xattrs(&mut self, tree: &Tree) -> Result<(), WriteError> {
        for node in self.order.iter().filter_map(|node| tree.node(*node)) {
            let Some(set) = tree.xattr_set(node.xattrs) else { continue };
            if !self.xattrs_at.contains_key(&node.xattrs) {
                let place = count("bytes of attributes", self.xattrs.len() + 1)?;
                self.xattrs.extend_from_slice(set);
                self.xattrs_at.insert(node.xattrs, place);
            }
        }
        Ok(())
    }

    /// Numbers the groups in use: blobs by first use, groups by blob and ordinal.
    fn place_groups(&mut self, parts: IndexParts<'_>) -> Result<(), WriteError> {
        let mut blob_of: HashMap<u32, u32> = HashMap::new();
        // (final blob, ordinal, packer's number, 1 plus the owner's inode)
        let mut used: Vec<(u32, u32, u32, u32)> = Vec::new();
        let mut seen: HashSet<u32> = HashSet::new();
        for (inode, node) in self.order.iter().enumerate() {
            let Some(Node { kind: NodeKind::Regular { content, .. }, .. }) = parts.tree.node(*node)
            else {
                continue;
            };
            match content {
                Content::Inline(bytes) => self.inline += bytes.len() as u64,
                Content::Pieces(pieces) => {
                    self.extents += pieces.extents.len() as u64;
                    self.contents += u64::from(pieces.digest.is_some());
                }
                Content::Hole | Content::Single { .. } => {}
            }
            for number in groups_of(content) {
                if !seen.insert(number) {
                    continue;
                }
                let group = parts.groups.group(number).ok_or(WriteError::NoGroup(number))?;
                let next = count_u32(blob_of.len());
                let blob = *blob_of.entry(group.blob).or_insert_with(|| {
                    self.blobs.extend(parts.groups.blob(group.blob).map(raw_blob));
                    next
                });
                let owner = if group.exclusive { count_u32(inode + 1) } else { 0 };
                used.push((blob, group.ordinal, number, owner));
            }
        }
        for node in &self.order {
            if let Some(Node { kind: NodeKind::Symlink(target), .. }) = parts.tree.node(*node) {
                self.inline += target.len() as u64;
            }
        }
        used.sort_unstable();
        let unknown = Digest::from_bytes([0; 32]);
        for (blob, ordinal, number, owner) in used {
            let final_number = count("groups", self.groups.len())?;
            self.group_of.insert(number, final_number);
            let group = parts.groups.group(number).ok_or(WriteError::NoGroup(number))?;
            self.groups.push(RawGroup {
                blob: blob.into(),
                ordinal: ordinal.into(),
                offset: group.offset.into(),
                stored_len: group.stored_len.into(),
                raw_len: group.raw_len.into(),
                owner: owner.into(),
                reserved: 0.into(),
                digest: group.digest.0,
            });
            self.decoded.push(group.decoded.map_or(unknown, |decoded| decoded.0));
        }
        if self.decoded.iter().all(|decoded| *decoded == unknown) {
            self.decoded.clear();
        }
        Ok(())
    }

    fn section_lens(&self, parts: IndexParts<'_>) -> [u64; SECTIONS] {
        Section::ALL.map(|section| {
            section.record_len()
                * match section {
                    Section::Inodes => self.order.len() as u64,
                    Section::Dirents => self.dirents.len() as u64,
                    Section::Names => self.names.len() as u64,
                    Section::Extents => self.extents,
                    Section::Groups => self.groups.len() as u64,
                    Section::Blobs => self.blobs.len() as u64,
                    Section::Xattrs => self.xattrs.len() as u64,
                    Section::Inline => self.inline,
                    Section::Contents => self.contents,
                    Section::Config => parts.config.len() as u64,
                    Section::Decoded => self.decoded.len() as u64,
                }
        })
    }

    fn write_section<W: Write>(
        &self,
        section: Section,
        parts: IndexParts<'_>,
        out: &mut Counted<W>,
    ) -> Result<(), WriteError> {
        match section {
            Section::Inodes => self.write_inodes(parts.tree, out)?,
            Section::Dirents => out.put(self.dirents.as_bytes())?,
            Section::Names => out.put(&self.names)?,
            Section::Extents => {
                for pieces in self.files(parts.tree).filter_map(pieces_of) {
                    for extent in &pieces.extents {
                        out.put(self.raw_extent(extent)?.as_bytes())?;
                    }
                }
            }
            Section::Groups => out.put(self.groups.as_bytes())?,
            Section::Blobs => out.put(self.blobs.as_bytes())?,
            Section::Xattrs => out.put(&self.xattrs)?,
            Section::Inline => {
                for node in self.nodes(parts.tree) {
                    out.put(inline_of(node))?;
                }
            }
            Section::Contents => {
                for digest in self.files(parts.tree).filter_map(digest_of) {
                    out.put(digest.as_bytes())?;
                }
            }
            Section::Config => out.put(parts.config)?,
            Section::Decoded => out.put(self.decoded.as_bytes())?,
        }
        Ok(())
    }

    fn nodes<'t>(&self, tree: &'t Tree) -> impl Iterator<Item = &'t Node> {
        self.order.iter().filter_map(|node| tree.node(*node))
    }

    fn files<'t>(&self, tree: &'t Tree) -> impl Iterator<Item = &'t Content> {
        self.nodes(tree).filter_map(|node| match &node.kind {
            NodeKind::Regular { content, .. } => Some(content),
            _ => None,
        })
    }

    fn write_inodes<W: Write>(&self, tree: &Tree, out: &mut Counted<W>) -> Result<(), WriteError> {
        let mut cursor = Cursor::default();
        for (inode, node) in (0u32..).zip(self.nodes(tree)) {
            let mut raw = RawInode {
                mode: (u32::from(node.kind.file_kind().code()) << 12 | u32::from(node.perm)).into(),
                uid: node.uid.into(),
                gid: node.gid.into(),
                nlink: node.names.into(),
                mtime_s: node.mtime.secs.into(),
                mtime_ns: node.mtime.nanos.into(),
                xattrs: self.xattrs_at.get(&node.xattrs).copied().unwrap_or(0).into(),
                ..RawInode::default()
            };
            self.place_data(inode, node, &mut cursor, &mut raw)?;
            out.put(raw.as_bytes())?;
        }
        Ok(())
    }

    /// Sets the data fields of an inode. Must advance `cursor` in the order in which
    /// `write_section` writes the sections.
    fn place_data(
        &self,
        inode: u32,
        node: &Node,
        cursor: &mut Cursor,
        raw: &mut RawInode,
    ) -> Result<(), WriteError> {
        let mut set = |tag: DataTag, a: u64, b: u32, c: u32| {
            raw.data = tag.code().into();
            raw.a = a.into();
            raw.b = b.into();
            raw.c = c.into();
        };
        match &node.kind {
            NodeKind::Directory => {
                let run = self.dirs.get(&inode).copied().unwrap_or_default();
                set(DataTag::Directory, run.first, run.count, run.parent);
                raw.nlink = run.subdirs.saturating_add(2).into();
            }
            NodeKind::Symlink(target) => {
                let len = count("bytes of a link's target", target.len())?;
                set(DataTag::Inline, cursor.inline, len, 0);
                cursor.inline += u64::from(len);
                raw.size = u64::from(len).into();
            }
            NodeKind::CharDevice(device) | NodeKind::BlockDevice(device) => {
                set(DataTag::Device, device.major.into(), device.minor, 0);
            }
            NodeKind::Fifo | NodeKind::Socket => {}
            NodeKind::Regular { size, content } => {
                match content {
                    Content::Hole => {}
                    Content::Inline(bytes) => {
                        let len = count("bytes of an inline file", bytes.len())?;
                        set(DataTag::Inline, cursor.inline, len, 0);
                        cursor.inline += u64::from(len);
                    }
                    Content::Single { group, group_offset } => {
                        set(DataTag::Single, self.group(*group)?.into(), *group_offset, 0);
                    }
                    Content::Pieces(pieces) => {
                        let holes = hole_blocks(*size, &pieces.extents);
                        let number = count("pieces of a file", pieces.extents.len())?;
                        set(DataTag::Extents, cursor.extents, number, holes);
                        cursor.extents += u64::from(number);
                        if pieces.digest.is_some() {
                            cursor.contents += 1;
                            raw.content = cursor.contents.into();
                        }
                    }
                }
                raw.size = (*size).into();
            }
        }
        Ok(())
    }

    fn raw_extent(&self, extent: &PackedExtent) -> Result<RawExtent, WriteError> {
        Ok(RawExtent {
            file_offset: extent.file_offset.into(),
            group: self.group(extent.group)?.into(),
            group_offset: extent.group_offset.into(),
            len: extent.len.into(),
            reserved: 0.into(),
        })
    }

    fn group(&self, number: u32) -> Result<u32, WriteError> {
        self.group_of.get(&number).copied().ok_or(WriteError::NoGroup(number))
    }
}

/// Fill levels of the sections while inodes are written.
#[derive(Default)]
struct Cursor {
    extents: u64,
    inline: u64,
    contents: u32,
}

/// Stores equal names once in the names section.
struct NameHeap {
    table: HashTable<(u32, u8)>,
    hasher: RandomState,
}

impl NameHeap {
    fn new() -> Self {
        Self { table: HashTable::new(), hasher: RandomState::new() }
    }

    fn place(&mut self, name: &[u8], names: &mut Vec<u8>) -> Result<u32, WriteError> {
        let at = |heap: &[u8], (start, len): (u32, u8)| {
            let start = start as usize;
            heap.get(start..start + usize::from(len)).unwrap_or(&[]).to_vec()
        };
        let hash = self.hasher.hash_one(name);
        let same = |place: &(u32, u8)| {
            let start = place.0 as usize;
            names.get(start..start + usize::from(place.1)) == Some(name)
        };
        if let Some(place) = self.table.find(hash, same) {
            return Ok(place.0);
        }
        let start = count("bytes of names", names.len())?;
        count("bytes of names", names.len() + name.len())?;
        names.extend_from_slice(name);
        let place = (start, u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.table
            .insert_unique(hash, place, |other| self.hasher.hash_one(at(names, *other).as_slice()));
        Ok(start)
    }
}

fn raw_blob(blob: Blob) -> RawBlob {
    RawBlob {
        id: blob.id.0,
        size: blob.size.into(),
        toc_offset: blob.toc_offset.into(),
        toc_digest: blob.toc_digest,
    }
}

fn groups_of(content: &Content) -> impl Iterator<Item = u32> {
    let (single, many): (Option<u32>, &[PackedExtent]) = match content {
        Content::Single { group, .. } => (Some(*group), &[]),
        Content::Pieces(pieces) => (None, &pieces.extents),
        Content::Hole | Content::Inline(_) => (None, &[]),
    };
    single.into_iter().chain(many.iter().map(|extent| extent.group))
}

fn pieces_of(content: &Content) -> Option<&Pieces> {
    match content {
        Content::Pieces(pieces) => Some(pieces),
        Content::Hole | Content::Inline(_) | Content::Single { .. } => None,
    }
}

fn digest_of(content: &Content) -> Option<&Digest> {
    pieces_of(content).and_then(|pieces| pieces.digest.as_ref())
}

fn inline_of(node: &Node) -> &[u8] {
    match &node.kind {
        NodeKind::Symlink(target) => target,
        NodeKind::Regular { content: Content::Inline(bytes), .. } => bytes,
        _ => &[],
    }
}

/// Returns the number of 4 KiB blocks that contain no data.
fn hole_blocks(size: u64, extents: &[PackedExtent]) -> u32 {
    let mut with_data = 0u64;
    let mut counted_to = 0u64;
    for extent in extents {
        let first = (extent.file_offset / 4096).max(counted_to);
        let end = (extent.file_offset + u64::from(extent.len)).div_ceil(4096);
        with_data += end.saturating_sub(first);
        counted_to = end.max(counted_to);
    }
    u32::try_from(size.div_ceil(4096).saturating_sub(with_data)).unwrap_or(u32::MAX)
}

fn count(what: &'static str, number: usize) -> Result<u32, WriteError> {
    u32::try_from(number).map_err(|_| WriteError::TooLarge { what, limit: u32::MAX.into() })
}

fn count_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
