//! Provides shared helpers for the tests of importers: a sink in memory, and trees as plain maps.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;

use inlay_store::pack::{Content, FileSink, PackError};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree};

/// A sink in memory. A file's group number is its position in `files`.
#[derive(Debug, Default)]
pub(crate) struct MemorySink {
    pub(crate) files: Vec<StoredFile>,
}

/// A file passed to a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredFile {
    pub(crate) data: Vec<Range<u64>>,
    pub(crate) bytes: Vec<u8>,
}

impl FileSink for MemorySink {
    fn add_file(
        &mut self,
        size: u64,
        data: &[Range<u64>],
        reader: &mut dyn io::Read,
    ) -> Result<Content, PackError> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(PackError::Read)?;
        let want = data.iter().map(|range| range.end - range.start).sum();
        let mut end = 0;
        for range in data {
            assert!(end <= range.start && range.start < range.end && range.end <= size);
            end = range.end;
        }
        if bytes.len() as u64 != want {
            return Err(PackError::Short { have: bytes.len() as u64, want });
        }
        if data.is_empty() {
            return Ok(Content::Hole);
        }
        self.files.push(StoredFile { data: data.to_vec(), bytes });
        let group = u32::try_from(self.files.len() - 1).unwrap();
        Ok(Content::Single { group, group_offset: 0 })
    }
}

/// An object of a tree, with file contents inline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TestObject {
    File { size: u64, stored: StoredFile },
    Other(NodeKind),
}

/// A named object, with the first name of its inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) meta: Meta,
    pub(crate) object: TestObject,
    pub(crate) first_name: Vec<u8>,
}

/// A whole tree by path; the root's is empty.
pub(crate) type Listing = BTreeMap<Vec<u8>, Seen>;

/// Lists a tree with its files in `sink`.
pub(crate) fn list(tree: &Tree, sink: &MemorySink) -> Listing {
    let mut paths: BTreeMap<Vec<u8>, NodeId> = BTreeMap::new();
    let mut todo = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((path, node)) = todo.pop() {
        for (name, child) in tree.entries(node) {
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            todo.push((path, child));
        }
        paths.insert(path, node);
    }
    let mut firsts: HashMap<NodeId, Vec<u8>> = HashMap::new();
    let mut listing = Listing::new();
    for (path, node) in paths {
        let first_name = firsts.entry(node).or_insert_with(|| path.clone()).clone();
        let object = match tree.kind(node) {
            NodeKind::Regular { size, content } => {
                let stored = match content {
                    Content::Hole => StoredFile { data: Vec::new(), bytes: Vec::new() },
                    Content::Single { group, .. } => sink.files[*group as usize].clone(),
                    other => panic!("{other:?}"),
                };
                TestObject::File { size: *size, stored }
            }
            other => TestObject::Other(other.clone()),
        };
        listing.insert(path, Seen { meta: tree.meta(node), object, first_name });
    }
    listing
}

/// A file without holes.
pub(crate) fn file(bytes: &[u8]) -> TestObject {
    let size = bytes.len() as u64;
    let data = (size > 0).then_some(0..size).into_iter().collect();
    TestObject::File { size, stored: StoredFile { data, bytes: bytes.to_vec() } }
}

/// Builds an archive entry by entry.
pub(crate) struct ArchiveWriter {
    builder: tar::Builder<Vec<u8>>,
}

impl ArchiveWriter {
    pub(crate) fn new() -> Self {
        Self { builder: tar::Builder::new(Vec::new()) }
    }

    /// Adds an entry with mode 0644, time 7 and a short name.
    pub(crate) fn add(&mut self, kind: tar::EntryType, name: &str, link: &str, data: &[u8]) {
        self.add_with(kind, name, link, data, 0o644, 7);
    }

    pub(crate) fn add_with(
        &mut self,
        kind: tar::EntryType,
        name: &str,
        link: &str,
        data: &[u8],
        mode: u32,
        mtime: u64,
    ) {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(mtime);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.builder.append(&header, data).unwrap();
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}
