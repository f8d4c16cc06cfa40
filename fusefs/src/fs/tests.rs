//! Tests random trees against a reference model, without a kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::format::{Device, FileKind, Index, InodeIdx, Timestamp};
use inlay_store::ids::{BlobId, Kind};
use inlay_store::pack::{BlobStore, FileSink, KnownChunks, PackError, PackOptions, Packer};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use proptest::prelude::*;

use super::*;
use crate::content::{ContentError, ReadDone, ReadNow};

/// A file's size and data ranges: sorted, without overlap.
#[derive(Debug, Clone)]
struct Contents {
    size: u64,
    data: Vec<(u64, Vec<u8>)>,
}

impl Contents {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).unwrap()];
        for (start, piece) in &self.data {
            let start = usize::try_from(*start).unwrap();
            bytes[start..start + piece.len()].copy_from_slice(piece);
        }
        bytes
    }

    fn is_data(&self, offset: u64) -> bool {
        self.data.iter().any(|(start, piece)| {
            (*start..*start + u64::try_from(piece.len()).unwrap()).contains(&offset)
        })
    }
}

#[derive(Debug, Clone)]
enum Node {
    File(Contents),
    Directory(BTreeMap<Vec<u8>, (Meta, Node)>),
    Symlink(Vec<u8>),
    Special(NodeKind),
}

fn meta() -> impl Strategy<Value = Meta> {
    let attributes = prop::collection::btree_map(
        prop_oneof!["user\\.[a-z]{1,6}", "trusted\\.[a-z]{1,6}"],
        prop::collection::vec(any::<u8>(), 0..20),
        0..4,
    );
    (0u16..0o10000, any::<u32>(), any::<u32>(), any::<i64>(), 0u32..1_000_000_000, attributes)
        .prop_map(|(perm, uid, gid, secs, nanos, attributes)| Meta {
            perm,
            uid,
            gid,
            mtime: Timestamp { secs, nanos },
            xattrs: attributes
                .into_iter()
                .map(|(name, value)| (name.into_bytes().into(), value.into()))
                .collect(),
        })
}

fn contents() -> impl Strategy<Value = Contents> {
    let hole = prop_oneof![0u64..3, 0u64..5000];
    let piece = (hole, prop::collection::vec(any::<u8>(), 1..4000));
    (prop::collection::vec(piece, 0..5), 0u64..5000).prop_map(|(pieces, tail)| {
        let mut at = 0;
        let mut data: Vec<(u64, Vec<u8>)> = Vec::new();
        for (hole, piece) in pieces {
            at += hole;
            let next = at + piece.len() as u64;
            data.push((at, piece));
            at = next;
        }
        Contents { size: at + tail, data }
    })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>().prop_filter("none", |b| !matches!(b, 0 | b'/' | b'.')), 1..12)
}

fn special() -> impl Strategy<Value = NodeKind> {
    let device = (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Device { major, minor });
    prop_oneof![
        device.clone().prop_map(NodeKind::CharDevice),
        device.prop_map(NodeKind::BlockDevice),
        Just(NodeKind::Fifo),
        Just(NodeKind::Socket),
    ]
}

fn directory() -> impl Strategy<Value = BTreeMap<Vec<u8>, (Meta, Node)>> {
    let leaf = prop_oneof![
        4 => contents().prop_map(Node::File),
        1 => prop::collection::vec(1u8..=255, 1..60).prop_map(Node::Symlink),
        1 => special().prop_map(Node::Special),
    ];
    let node = leaf.prop_recursive(3, 24, 8, |inner| {
        prop::collection::btree_map(name(), (meta(), inner), 0..8).prop_map(Node::Directory)
    });
    prop::collection::btree_map(name(), (meta(), node), 0..10)
}

struct Nowhere;

impl BlobStore for Nowhere {
    fn put(&mut self, _: BlobId, _: Vec<u8>) -> Result<(), PackError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

fn build(root: &BTreeMap<Vec<u8>, (Meta, Node)>) -> Index {
    let options = PackOptions { workers: 1, inline_len_max: 64, ..PackOptions::default() };
    let mut packer = Packer::new(options, KnownChunks::new(), Box::new(Nowhere)).unwrap();
    let mut tree = Tree::new(TreeLimits::default());
    fill(&mut tree, &mut packer, NodeId::ROOT, root);
    let groups = packer.finish().unwrap();
    let mut bytes = Vec::new();
    let parts = IndexParts { kind: Kind::Filesystem, tree: &tree, groups: &groups, config: b"" };
    write_index(parts, &mut bytes).unwrap();
    Index::from_bytes(bytes).unwrap()
}

fn fill(
    tree: &mut Tree,
    packer: &mut Packer,
    dir: NodeId,
    entries: &BTreeMap<Vec<u8>, (Meta, Node)>,
) {
    for (name, (meta, node)) in entries {
        let kind = match node {
            Node::File(contents) => {
                let ranges: Vec<_> = contents
                    .data
                    .iter()
                    .map(|(start, piece)| *start..*start + piece.len() as u64)
                    .collect();
                let data: Vec<u8> =
                    contents.data.iter().flat_map(|(_, piece)| piece.clone()).collect();
                let content = packer.add_file(contents.size, &ranges, &mut data.as_slice());
                NodeKind::Regular { size: contents.size, content: content.unwrap() }
            }
            Node::Directory(_) => NodeKind::Directory,
            Node::Symlink(target) => NodeKind::Symlink(target.as_slice().into()),
            Node::Special(kind) => kind.clone(),
        };
        let id = tree.insert(dir, name, meta.clone(), kind).unwrap();
        if let Node::Directory(entries) = node {
            fill(tree, packer, id, entries);
        }
    }
}

/// Serves files from memory: even offsets at once, odd ones later, from another thread.
#[derive(Default)]
struct Memory {
    files: Mutex<BTreeMap<u32, Vec<u8>>>,
}

impl Memory {
    fn piece(&self, inode: InodeIdx, offset: u64, len: usize) -> Vec<u8> {
        let start = usize::try_from(offset).unwrap();
        self.files.lock().unwrap()[&inode.0][start..start + len].to_vec()
    }
}

impl ContentSource for Memory {
    fn read_now(
        &self,
        inode: InodeIdx,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<ReadNow, ContentError> {
        if offset % 2 == 1 {
            return Ok(ReadNow::WouldWait);
        }
        buf.copy_from_slice(&self.piece(inode, offset, buf.len()));
        Ok(ReadNow::Filled)
    }

    fn read_later(&self, inode: InodeIdx, offset: u64, len: u32, done: ReadDone) {
        let piece = self.piece(inode, offset, len as usize);
        std::thread::spawn(move || done(Ok(Bytes::from(piece)))).join().unwrap();
    }
}

fn read(fs: &SnapshotFs, inode: InodeIdx, offset: u64, len: u32) -> Result<Vec<u8>, FsError> {
    let (sender, receiver) = mpsc::channel();
    fs.read(inode, offset, len, move |_, outcome| {
        sender.send(outcome.map(<[u8]>::to_vec)).unwrap();
    });
    receiver.recv().unwrap()
}

/// Lists a directory in pieces of `room` entries.
fn list(fs: &SnapshotFs, dir: InodeIdx, room: usize) -> Vec<(Vec<u8>, InodeIdx, FileKind)> {
    let (mut all, mut from) = (Vec::new(), DirOffset(0));
    loop {
        let before = all.len();
        fs.read_dir(dir, from, |item| {
            if all.len() - before == room {
                return Ok(Emit::Full);
            }
            from = item.next;
            all.push((item.name.to_vec(), item.inode, item.kind));
            Ok(Emit::More)
        })
        .unwrap();
        if all.len() == before {
            return all;
        }
    }
}

fn check_meta(fs: &SnapshotFs, inode: InodeIdx, meta: &Meta) {
    let attr = fs.attr(inode).unwrap();
    assert_eq!((attr.perm, attr.uid, attr.gid), (meta.perm, meta.uid, meta.gid));
    assert_eq!(attr.mtime, meta.mtime);
    let mut names = Vec::new();
    for (name, value) in &meta.xattrs {
        let len = u32::try_from(value.len()).unwrap();
        assert_eq!(fs.xattr(inode, name, 0).unwrap(), XattrAnswer::Size(len));
        assert_eq!(
            fs.xattr(inode, name, len + 1).unwrap(),
            XattrAnswer::Bytes(value.as_ref().into())
        );
        if len > 1 {
            let small = fs.xattr(inode, name, len - 1);
            assert!(matches!(small, Err(FsError::BufferTooSmall(_))));
        }
        names.extend_from_slice(name);
        names.push(0);
    }
    assert!(matches!(fs.xattr(inode, b"user.absent", 0), Err(FsError::NoAttribute)));
    let room = u32::try_from(names.len() + 1).unwrap();
    assert_eq!(
        fs.xattr_names(inode, Viewer::Root, room).unwrap(),
        XattrAnswer::Bytes(names.into())
    );
    match fs.xattr_names(inode, Viewer::User, room).unwrap() {
        XattrAnswer::Bytes(seen) => assert!(!seen.windows(8).any(|w| w == b"trusted.")),
        XattrAnswer::Size(_) => panic!("the size was not asked for"),
    }
}

fn check_file(fs: &SnapshotFs, inode: InodeIdx, contents: &Contents, probes: &[(u64, u32)]) {
    let bytes = contents.bytes();
    fs.open(inode).unwrap();
    let edges = contents.data.iter().flat_map(|(start, piece)| {
        let end = *start + piece.len() as u64;
        [*start, end - 1, end].map(|offset| (offset, 2))
    });
    for (offset, len) in &edges.chain(probes.iter().copied()).collect::<Vec<_>>() {
        let start = usize::try_from(*offset).unwrap().min(bytes.len());
        let end = (start + *len as usize).min(bytes.len());
        assert_eq!(read(fs, inode, *offset, *len).unwrap(), bytes[start..end]);
        for seek in [Seek::Data, Seek::Hole] {
            // Tiny files are inline in the index, without their holes.
            let inline = contents.size <= 64 && !contents.data.is_empty();
            let wanted = (*offset..contents.size)
                .find(|at| (inline || contents.is_data(*at)) == (seek == Seek::Data));
            let wanted = match seek {
                Seek::Hole if *offset < contents.size => wanted.or(Some(contents.size)),
                Seek::Hole | Seek::Data => wanted,
            };
            match fs.seek(inode, *offset, seek) {
                Ok(found) => assert_eq!(Some(found), wanted),
                Err(FsError::NothingAfter) => assert_eq!(None, wanted),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn check_dir(
    fs: &SnapshotFs,
    memory: &Memory,
    dir: InodeIdx,
    parent: InodeIdx,
    entries: &BTreeMap<Vec<u8>, (Meta, Node)>,
    probes: &[(u64, u32)],
) {
    let listed = list(fs, dir, 3);
    assert_eq!(listed, list(fs, dir, 1000));
    assert_eq!(listed[0], (b".".to_vec(), dir, FileKind::Directory));
    assert_eq!(listed[1], (b"..".to_vec(), parent, FileKind::Directory));
    let names: Vec<_> = listed[2..].iter().map(|(name, ..)| name).collect();
    assert_eq!(names, entries.keys().collect::<Vec<_>>());
    assert_eq!(fs.lookup(dir, b"no.such.name").unwrap(), None);
    for ((name, (meta, node)), (_, inode, kind)) in entries.iter().zip(&listed[2..]) {
        let found = fs.lookup(dir, name).unwrap().unwrap();
        assert_eq!((found.inode, found.attr.kind), (*inode, *kind));
        check_meta(fs, *inode, meta);
        match node {
            Node::File(contents) => {
                memory.files.lock().unwrap().insert(inode.0, contents.bytes());
                check_file(fs, *inode, contents, probes);
            }
            Node::Directory(entries) => check_dir(fs, memory, *inode, dir, entries, probes),
            Node::Symlink(target) => assert_eq!(fs.readlink(*inode).unwrap(), target),
            Node::Special(kind) => {
                assert_eq!(found.attr.kind, kind.file_kind());
                if let NodeKind::CharDevice(device) | NodeKind::BlockDevice(device) = kind {
                    assert_eq!(found.attr.device, *device);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_snapshot_serves_the_tree_it_was_built_from(
        root in directory(),
        probes in prop::collection::vec((0u64..25_000, 0u32..20_000), 1..12),
    ) {
        let memory = Arc::new(Memory::default());
        let fs = SnapshotFs::new(build(&root), memory.clone());
        check_dir(&fs, &memory, InodeIdx::ROOT, InodeIdx::ROOT, &root, &probes);
    }

    /// With random bytes of an index overwritten, every call returns a result or an error.
    #[test]
    fn a_damaged_index_never_panics_or_loops(
        root in directory(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let mut bytes = build(&root).bytes().to_vec();
        for (place, value) in damage {
            // A damaged header would fail the whole index.
            let at = 256.min(bytes.len() - 1) + place.index(bytes.len() - 256.min(bytes.len() - 1));
            bytes[at] = value;
        }
        let Ok(index) = Index::from_bytes(bytes) else { return Ok(()) };
        let count = index.inode_count();
        let fs = SnapshotFs::new(index, Arc::new(Refuses));
        fs.statfs();
        for inode in (0..count.min(200)).chain([count, u32::MAX]).map(InodeIdx) {
            let _ = (fs.attr(inode), fs.readlink(inode), fs.lookup(inode, b"a"), fs.open(inode));
            let _ = (fs.xattr(inode, b"user.a", 0), fs.xattr_names(inode, Viewer::Root, 0));
            let _ = (fs.seek(inode, 0, Seek::Data), fs.seek(inode, 0, Seek::Hole));
            let _ = read(&fs, inode, 1, 4096);
            let _ = fs.read_dir(inode, DirOffset(0), |item| {
                fs.dir_item_attr(inode, item).map(|_| Emit::More)
            });
        }
    }
}

pub(crate) struct Refuses;

impl ContentSource for Refuses {
    fn read_now(&self, _: InodeIdx, _: u64, _: &mut [u8]) -> Result<ReadNow, ContentError> {
        Err(ContentError::Shutdown)
    }

    fn read_later(&self, _: InodeIdx, _: u64, _: u32, done: ReadDone) {
        done(Err(ContentError::Shutdown));
    }
}

/// Returns an index with a directory that is listed twice: by itself, or only by the root.
pub(crate) fn listed_twice(by_itself: bool) -> Index {
    let dir = |below| (Meta::default(), Node::Directory(below));
    let two = BTreeMap::from([
        (b"a".to_vec(), dir(BTreeMap::new())),
        (b"b".to_vec(), dir(BTreeMap::new())),
    ]);
    // Entry 0 names inode 1 in both.
    let (root, entries) =
        if by_itself { (BTreeMap::from([(b"d".to_vec(), dir(two))]), 1..3) } else { (two, 0..2) };
    let mut bytes = build(&root).bytes().to_vec();
    // The second section of the header, behind 32 bytes.
    let dirents = usize::try_from(u64::from_le_bytes(bytes[48..56].try_into().unwrap())).unwrap();
    for entry in entries {
        let field = dirents + entry * 12 + 4;
        assert!((1..4).contains(&bytes[field]));
        bytes[field..field + 4].copy_from_slice(&1u32.to_le_bytes());
    }
    Index::from_bytes(bytes).unwrap()
}

fn one_file(len: usize) -> (Index, InodeIdx) {
    let contents = Contents { size: len as u64, data: vec![(0, vec![7; len])] };
    let file = (Meta::default(), Node::File(contents));
    let index = build(&BTreeMap::from([(b"file".to_vec(), file)]));
    let inode = index.lookup(InodeIdx::ROOT, b"file").unwrap().unwrap();
    (index, inode)
}

/// Returns a wrong number of bytes.
struct Short;

impl ContentSource for Short {
    fn read_now(&self, _: InodeIdx, _: u64, _: &mut [u8]) -> Result<ReadNow, ContentError> {
        Ok(ReadNow::WouldWait)
    }

    fn read_later(&self, _: InodeIdx, _: u64, len: u32, done: ReadDone) {
        done(Ok(vec![0; len as usize - 1].into()));
    }
}

#[test]
fn too_few_bytes_from_the_source_are_an_error_and_no_short_read() {
    let (index, file) = one_file(5000);
    let fs = SnapshotFs::new(index, Arc::new(Short));
    assert!(matches!(read(&fs, file, 0, 4096), Err(FsError::Content { .. })));
}

#[test]
fn reads_longer_than_agreed_on_are_refused_and_not_cut() {
    let (index, file) = one_file(5000);
    let fs = SnapshotFs::new(index, Arc::new(Refuses));
    assert!(matches!(read(&fs, file, 0, READ_LEN_MAX + 1), Err(FsError::Invalid(_))));
    assert!(read(&fs, file, 5000, READ_LEN_MAX).unwrap().is_empty());
    assert!(read(&fs, file, u64::MAX, READ_LEN_MAX).unwrap().is_empty());
}

#[test]
fn an_error_within_a_listing_follows_the_entries_before_it() {
    let entries =
        (0..4u8).map(|n| (vec![b'a' + n], (Meta::default(), Node::Special(NodeKind::Fifo))));
    let fs = SnapshotFs::new(build(&entries.collect()), Arc::new(Refuses));
    let piece = |from| {
        let mut names = Vec::new();
        let outcome = fs.read_dir(InodeIdx::ROOT, from, |item| {
            if item.name == b"c" {
                return Err(FsError::NoAttribute);
            }
            names.push((item.name.to_vec(), item.next));
            Ok(Emit::More)
        });
        (names, outcome)
    };
    let (names, outcome) = piece(DirOffset(0));
    assert!(outcome.is_ok());
    assert_eq!(names.len(), 4);
    assert!(piece(names[3].1).1.is_err());
}

#[test]
fn a_directory_is_found_only_where_it_says_that_it_is() {
    let below = Node::Directory(BTreeMap::from([(
        b"b".to_vec(),
        (Meta::default(), Node::Directory(BTreeMap::new())),
    )]));
    let fs = SnapshotFs::new(
        build(&BTreeMap::from([(b"a".to_vec(), (Meta::default(), below))])),
        Arc::new(Refuses),
    );
    let a = fs.lookup(InodeIdx::ROOT, b"a").unwrap().unwrap().inode;
    let b = fs.lookup(a, b"b").unwrap().unwrap().inode;
    assert!(matches!(fs.child(InodeIdx::ROOT, b), Err(FsError::Index { .. })));
    assert!(matches!(fs.child(b, a), Err(FsError::Index { .. })));
}

#[test]
fn an_alias_shows_one_owner_as_another_and_leaves_the_rest() {
    const ACL: &[u8] = b"system.posix_acl_access";
    let list = |users: &[(u8, u32)]| -> Vec<u8> {
        let entry = |(permissions, user): &(u8, u32)| {
            [&[2, 0, *permissions, 0][..], &user.to_le_bytes()].concat()
        };
        [&2u32.to_le_bytes()[..], &users.iter().flat_map(entry).collect::<Vec<_>>()].concat()
    };
    let entry = |uid, gid| {
        let list = list(&[(4, 0), (1, 7), (2, 1000)]);
        let xattrs = vec![(ACL.into(), list.clone().into()), (b"user.x"[..].into(), list.into())];
        (Meta { uid, gid, xattrs, ..Meta::default() }, Node::Special(NodeKind::Fifo))
    };
    let names = [(&b"a"[..], (0, 0)), (b"b", (1000, 0)), (b"c", (7, 1001)), (b"d", (0, 1001))];
    let entries = names.iter().map(|(name, (uid, gid))| (name.to_vec(), entry(*uid, *gid)));
    let index = build(&entries.collect());
    let fs = |alias| SnapshotFs::new(index.clone(), Arc::new(Refuses)).with_alias(alias);
    let to = |to| Renumber { from: 0, to };
    let (plain, shown) = (fs(None), fs(Some(OwnerAlias { user: to(1000), group: to(1001) })));

    let root = shown.attr(InodeIdx::ROOT).unwrap();
    assert_eq!((root.uid, root.gid), (1000, 1001));
    let of =
        |fs: &SnapshotFs| names.map(|(name, _)| fs.lookup(InodeIdx::ROOT, name).unwrap().unwrap());
    let owners = of(&shown).map(|found| (found.attr.uid, found.attr.gid));
    assert_eq!(owners, [(1000, 1001), (1000, 1001), (7, 1001), (1000, 1001)]);
    assert_eq!(of(&plain).map(|found| (found.attr.uid, found.attr.gid)), names.map(|(_, of)| of));
    shown
        .read_dir(InodeIdx::ROOT, DirOffset(2), |item| {
            let found = shown.dir_item_attr(InodeIdx::ROOT, item)?;
            assert_eq!(found.attr, shown.attr(item.inode)?);
            Ok(Emit::More)
        })
        .unwrap();

    let [a, ..] = of(&shown);
    let (before, after) = (list(&[(4, 0), (1, 7), (2, 1000)]), list(&[(6, 1000), (1, 7)]));
    for (name, value) in [(ACL, after), (b"user.x", before)] {
        let size = u32::try_from(value.len()).unwrap();
        assert_eq!(shown.xattr(a.inode, name, 0).unwrap(), XattrAnswer::Size(size));
        assert_eq!(shown.xattr(a.inode, name, size).unwrap(), XattrAnswer::Bytes(value.into()));
    }
    // Programs see a change of owner as a change.
    let times = |fs: &SnapshotFs| of(fs).map(|found| fs.changed(found.inode, &found.attr));
    assert_ne!(times(&plain)[0], times(&shown)[0]);
}
