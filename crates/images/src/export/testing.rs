//! Builds snapshots in memory for tests.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_errors_doc,
    clippy::new_without_default,
    clippy::wildcard_imports,
    reason = "only tests use it"
)]

use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::format::{Device, FileData, Index, InodeIdx, Timestamp};
use inlay_store::ids::{BlobId, Kind};
use inlay_store::pack::{
    BlobStore, FileSink, KnownChunks, PackError, PackOptions, PackedGroups, Packer,
};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};

use super::*;
use crate::import::NoProgress;

type Blobs = Arc<Mutex<HashMap<BlobId, Vec<u8>>>>;

struct Memory(Blobs);

impl BlobStore for Memory {
    fn put(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<(), PackError> {
        self.0.lock().unwrap().insert(id, bytes);
        Ok(())
    }
    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

/// Packs file contents into memory.
pub struct Sink {
    blobs: Blobs,
    packer: Packer,
}

impl Sink {
    pub fn new() -> Self {
        let blobs = Blobs::default();
        let options = PackOptions { workers: 1, ..PackOptions::default() };
        let store = Box::new(Memory(blobs.clone()));
        Self { packer: Packer::new(options, KnownChunks::new(), store).unwrap(), blobs }
    }

    pub fn packer(&mut self) -> &mut dyn FileSink {
        &mut self.packer
    }

    pub fn snapshot(self, tree: &Tree, config: &[u8]) -> Snapshot {
        let groups = self.packer.finish().unwrap();
        Snapshot { index: index_of(tree, &groups, config), blobs: self.blobs }
    }
}

pub fn index_of(tree: &Tree, groups: &PackedGroups, config: &[u8]) -> Index {
    let mut bytes = Vec::new();
    let parts = IndexParts { kind: Kind::Image, tree, groups, config };
    write_index(parts, &mut bytes).unwrap();
    Index::from_bytes(bytes).unwrap()
}

/// A snapshot and its blobs.
pub struct Snapshot {
    pub index: Index,
    blobs: Blobs,
}

impl Snapshot {
    /// Returns every blob, as a store would hold it.
    pub fn blobs(&self) -> HashMap<BlobId, Vec<u8>> {
        self.blobs.lock().unwrap().clone()
    }

    pub fn export(&self, target: &Target) -> Result<Report, ExportError> {
        self.exporter().run(target)
    }

    pub fn exporter(&self) -> Export<'_> {
        Export {
            index: &self.index,
            bytes: self,
            progress: &NoProgress,
            compression: LayerCompression::Gzip,
        }
    }
}

impl FileBytes for Snapshot {
    fn copy(
        &self,
        inode: InodeIdx,
        range: Range<u64>,
        out: &mut dyn Write,
    ) -> Result<(), CopyError> {
        let FileData::Extents(extents) = self.index.data(inode).unwrap() else { panic!() };
        let blobs = self.blobs.lock().unwrap();
        for extent in extents.within(range.clone()) {
            let extent = extent.unwrap();
            let group = self.index.group(extent.group).unwrap();
            let blob = &blobs[&self.index.blob(group.blob).unwrap().id];
            let start = usize::try_from(group.offset).unwrap();
            let stored = &blob[start..start + group.stored_len as usize];
            let raw = zstd::bulk::decompress(stored, group.raw_len as usize).unwrap();
            let begin = range.start.max(extent.file_offset) - extent.file_offset;
            let end = range.end.min(extent.file_end()) - extent.file_offset;
            let at = |n: u64| extent.group_offset as usize + usize::try_from(n).unwrap();
            out.write_all(&raw[at(begin)..at(end)])?;
        }
        Ok(())
    }
}

/// Builds a snapshot object by object.
pub struct Builder {
    pub tree: Tree,
    sink: Sink,
}

impl Builder {
    pub fn new() -> Self {
        Self { tree: Tree::new(TreeLimits::default()), sink: Sink::new() }
    }

    pub fn add(&mut self, dir: NodeId, name: &[u8], meta: Meta, kind: NodeKind) -> NodeId {
        self.tree.insert(dir, name, meta, kind).unwrap()
    }

    pub fn dir(&mut self, dir: NodeId, name: &[u8]) -> NodeId {
        self.add(dir, name, meta(0o755), NodeKind::Directory)
    }

    /// Adds a file of `size` bytes with data in the ranges `data` and holes elsewhere.
    pub fn file(
        &mut self,
        dir: NodeId,
        name: &[u8],
        meta: Meta,
        size: u64,
        data: &[Range<u64>],
    ) -> NodeId {
        let len: u64 = data.iter().map(|r| r.end - r.start).sum();
        let data = if len == 0 { &[] } else { data };
        let bytes = noise(name, usize::try_from(len).unwrap());
        let content = self.sink.packer.add_file(size, data, &mut Cursor::new(bytes)).unwrap();
        self.add(dir, name, meta, NodeKind::Regular { size, content })
    }

    pub fn finish(self, config: &[u8]) -> Snapshot {
        self.sink.snapshot(&self.tree, config)
    }
}

pub fn noise(seed: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn meta(perm: u16) -> Meta {
    Meta { perm, mtime: Timestamp { secs: 1_600_000_000, nanos: 0 }, ..Meta::default() }
}

pub fn xattr(name: &[u8], value: &[u8]) -> (Box<[u8]>, Box<[u8]>) {
    (name.into(), value.into())
}

/// Builds a tree with every kind of object, and every property that needs an extended tar header.
/// Sockets are left to tests of directories, since the tar format has none.
pub fn every_kind() -> Builder {
    let mut b = Builder::new();
    let root = NodeId::ROOT;
    b.tree.set_meta(root, Meta { uid: 3, gid: 4, ..meta(0o1711) }).unwrap();
    for (size, name) in [(0, "empty"), (10, "tiny"), (5000, "small"), (3 << 20, "large")] {
        b.file(root, name.as_bytes(), meta(0o640), size, std::slice::from_ref(&(0..size)));
    }
    owners_and_times(&mut b);
    names(&mut b);
    attributes(&mut b);
    let sparse = b.dir(root, b"sparse");
    let mib = 1 << 20;
    b.file(sparse, b"all-hole", meta(0o600), 5 * mib, &[]);
    b.file(sparse, b"middle", meta(0o600), 9 * mib + 5, &[mib..2 * mib, 4 * mib..5 * mib]);
    b.file(sparse, b"ends", meta(0o600), 4 * mib, &[0..65536, 3 * mib..4 * mib]);
    let long = [b'n'; 200];
    b.file(sparse, &long, meta(0o600), 2 * mib, std::slice::from_ref(&(mib..2 * mib)));
    let nodes = b.dir(root, b"nodes");
    let device = |major, minor| Device { major, minor };
    b.add(nodes, b"null", meta(0o666), NodeKind::CharDevice(device(1, 3)));
    b.add(nodes, b"large", meta(0o600), NodeKind::BlockDevice(device(4095, 1_048_575)));
    b.add(nodes, b"fifo", Meta { uid: 7, ..meta(0o622) }, NodeKind::Fifo);
    let to = NodeKind::Symlink(b"../../../../etc/passwd".as_slice().into());
    b.add(nodes, b"out", Meta { uid: 5, gid: 6, ..meta(0o777) }, to);
    let to = NodeKind::Symlink([b't'; 4095].as_slice().into());
    b.add(nodes, b"long", meta(0o777), to);
    let linked = b.file(nodes, b"one", meta(0o4755), 300, std::slice::from_ref(&(0..300)));
    let later = b.dir(root, b"z");
    b.tree.link(later, b"two", linked).unwrap();
    b.tree.link(root, b"three", linked).unwrap();
    let fifo = b.tree.child(nodes, b"fifo").unwrap();
    b.tree.link(later, b"fifo", fifo).unwrap();
    // Accessible to root only.
    b.add(root, b"closed", meta(0o000), NodeKind::Directory);
    b
}

fn owners_and_times(b: &mut Builder) {
    let dir = b.dir(NodeId::ROOT, b"owners");
    let at = |secs, nanos| Meta { mtime: Timestamp { secs, nanos }, ..meta(0o600) };
    for (name, meta) in [
        ("old", at(-1, 500_000_000)),
        ("older", at(-86_400 * 365, 0)),
        ("nanos", at(1_700_000_000, 123_456_789)),
        ("late", at(0x2_0000_0000, 1)),
        ("large-ids", Meta { uid: 0xffff_fffe, gid: 0x8000_0000, ..meta(0o600) }),
        ("setuid", Meta { uid: 12, gid: 13, ..meta(0o6755) }),
    ] {
        b.file(dir, name.as_bytes(), meta, 3, std::slice::from_ref(&(0..3)));
    }
    let inner = at(5, 6);
    b.add(dir, b"dir", Meta { perm: 0o2750, uid: 1, gid: 2, ..inner }, NodeKind::Directory);
}

fn names(b: &mut Builder) {
    let dir = b.dir(NodeId::ROOT, "n\u{e4}mes".as_bytes());
    for name in [
        b"\xff\xfe not utf-8".as_slice(),
        "\u{65e5}\u{672c}".as_bytes(),
        b"line\nfeed=equals",
        b"-rf",
        b" ",
        &[b'x'; 255],
        &[0xc3; 255],
    ] {
        b.file(dir, name, meta(0o644), 2, std::slice::from_ref(&(0..2)));
    }
    let mut deep = dir;
    for _ in 0..20 {
        deep = b.dir(deep, &[b'd'; 100]);
    }
    b.file(deep, b"file", meta(0o644), 1, std::slice::from_ref(&(0..1)));
}

fn attributes(b: &mut Builder) {
    let dir = b.dir(NodeId::ROOT, b"attributes");
    // Capabilities: version 2, effective, CAP_NET_BIND_SERVICE.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // An ACL: version 2, then tag, permissions and id of each entry.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let with = |xattrs| Meta { xattrs, ..meta(0o640) };
    for (name, xattrs) in [
        ("user", vec![xattr(b"user.note", b"a\0b\nc=d"), xattr(b"user.empty", b"")]),
        ("odd", vec![xattr(b"user.a=b%c", b"1"), xattr(b"trusted.t", b"2")]),
        ("capable", vec![xattr(b"security.capability", &capability)]),
        ("acl", vec![xattr(b"system.posix_acl_access", &acl)]),
    ] {
        b.file(dir, name.as_bytes(), with(xattrs), 3, std::slice::from_ref(&(0..3)));
    }
    let fifo = Meta { xattrs: vec![xattr(b"trusted.f", b"3")], ..meta(0o600) };
    b.add(dir, b"fifo", fifo, NodeKind::Fifo);
    let link = Meta { xattrs: vec![xattr(b"trusted.l", b"4")], ..meta(0o777) };
    b.add(dir, b"link", link, NodeKind::Symlink(b"user".as_slice().into()));
    let below = Meta {
        xattrs: vec![xattr(b"system.posix_acl_default", &acl), xattr(b"user.d", b"5")],
        ..meta(0o700)
    };
    let below = b.add(dir, b"default", below, NodeKind::Directory);
    b.file(below, b"plain", meta(0o644), 3, std::slice::from_ref(&(0..3)));
}
