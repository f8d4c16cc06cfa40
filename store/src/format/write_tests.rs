//! Compares indexes of random trees with a reference model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use zerocopy::FromBytes;

use super::check::{Checked, check_index};
use super::layout::{RawHeader, RawInode, Section};
use super::write::{IndexParts, write_index};
use super::*;
use crate::ids::Kind;
use crate::pack::{Content, PackedGroups};
use crate::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};

/// The reference: a path and its node. Hard links share a number.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    meta: Meta,
    kind: NodeKind,
    link: usize,
}

#[derive(Debug, Clone)]
enum Op {
    Insert { dir: usize, name: Vec<u8>, meta: Meta, kind: NodeKind },
    Link { dir: usize, name: Vec<u8>, to: usize },
    Remove { dir: usize, name: Vec<u8> },
}

fn meta() -> impl Strategy<Value = Meta> {
    let attribute =
        (prop::collection::vec(1u8..=255, 1..8), prop::collection::vec(any::<u8>(), 0..9));
    (0u16..0o10000, any::<u32>(), any::<u32>(), any::<i64>(), 0u32..1_000_000_000).prop_flat_map(
        move |(perm, uid, gid, secs, nanos)| {
            prop::collection::btree_map(attribute.0.clone(), attribute.1.clone(), 0..3).prop_map(
                move |attributes| Meta {
                    perm,
                    uid,
                    gid,
                    mtime: Timestamp { secs, nanos },
                    xattrs: attributes
                        .into_iter()
                        .map(|(name, value)| (name.into(), value.into()))
                        .collect(),
                },
            )
        },
    )
}

fn kind() -> impl Strategy<Value = NodeKind> {
    prop_oneof![
        4 => Just(NodeKind::Directory),
        2 => prop::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| NodeKind::Regular {
            size: bytes.len() as u64,
            content: Content::Inline(bytes.into()),
        }),
        1 => any::<u32>().prop_map(|size| NodeKind::Regular { size: size.into(), content: Content::Hole }),
        1 => prop::collection::vec(1u8..=255, 1..60).prop_map(|to| NodeKind::Symlink(to.into())),
        1 => (0u32..4096, 0u32..1 << 20)
            .prop_map(|(major, minor)| NodeKind::CharDevice(Device { major, minor })),
        1 => (0u32..4096, 0u32..1 << 20)
            .prop_map(|(major, minor)| NodeKind::BlockDevice(Device { major, minor })),
        1 => Just(NodeKind::Fifo),
        1 => Just(NodeKind::Socket),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        5 => prop::collection::vec(b'a'..=b'd', 1..3),
        1 => prop::collection::vec(
            any::<u8>().prop_filter("no name", |b| !matches!(b, 0 | b'/' | b'.')), 1..=255),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<usize>(), name(), meta(), kind())
            .prop_map(|(dir, name, meta, kind)| Op::Insert { dir, name, meta, kind }),
        2 => (any::<usize>(), name(), any::<usize>())
            .prop_map(|(dir, name, to)| Op::Link { dir, name, to }),
        1 => (any::<usize>(), name()).prop_map(|(dir, name)| Op::Remove { dir, name }),
    ]
}

fn path(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, b"/", name].concat()
}

fn forget(model: &mut BTreeMap<Vec<u8>, Model>, path: &[u8]) {
    let below = [path, b"/"].concat();
    model.retain(|p, _| p != path && !p.starts_with(&below));
}

/// Applies `ops` to both the tree and the model. Numbers in `ops` select among existing directories
/// and targets.
fn build(ops: &[Op]) -> (Tree, BTreeMap<Vec<u8>, Model>) {
    let mut tree = Tree::new(TreeLimits::default());
    let mut model: BTreeMap<Vec<u8>, Model> = BTreeMap::new();
    let mut links = 0;
    for op in ops {
        let (Op::Insert { dir, name, .. } | Op::Link { dir, name, .. } | Op::Remove { dir, name }) =
            op;
        let mut dirs = vec![Vec::new()];
        dirs.extend(
            model.iter().filter(|(_, m)| m.kind == NodeKind::Directory).map(|(p, _)| p.clone()),
        );
        let dir = dirs[dir % dirs.len()].clone();
        let at = find(&tree, &dir);
        let here = path(&dir, name);
        match op {
            Op::Insert { meta, kind, .. } => {
                forget(&mut model, &here);
                tree.insert(at, name, meta.clone(), kind.clone()).unwrap();
                links += 1;
                model.insert(here, Model { meta: meta.clone(), kind: kind.clone(), link: links });
            }
            Op::Link { to, .. } => {
                let targets: Vec<_> =
                    model.iter().filter(|(_, m)| m.kind != NodeKind::Directory).collect();
                let Some((from, target)) = targets.get(to % targets.len().max(1)) else { continue };
                let (from, target) = ((*from).clone(), (*target).clone());
                // Replacing a directory with a link to something inside it is up to the importer.
                if from.starts_with(&[here.as_slice(), b"/"].concat()) {
                    continue;
                }
                tree.link(at, name, find(&tree, &from)).unwrap();
                forget(&mut model, &here);
                model.insert(here, target);
            }
            Op::Remove { .. } => {
                assert_eq!(tree.remove(at, name), model.contains_key(&here));
                forget(&mut model, &here);
            }
        }
    }
    (tree, model)
}

fn find(tree: &Tree, path: &[u8]) -> NodeId {
    path.split(|b| *b == b'/')
        .filter(|name| !name.is_empty())
        .fold(NodeId::ROOT, |dir, name| tree.child(dir, name).unwrap())
}

fn written(tree: &Tree) -> Index {
    let mut bytes = Vec::new();
    let parts = IndexParts {
        kind: Kind::Directory,
        tree,
        groups: &PackedGroups::default(),
        config: br#"{"a":1}"#,
    };
    let len = write_index(parts, &mut bytes).unwrap();
    assert_eq!(len, bytes.len() as u64);
    Index::from_bytes(bytes).unwrap()
}

fn compare(index: &Index, model: &BTreeMap<Vec<u8>, Model>) {
    let mut links: BTreeMap<usize, (InodeIdx, u32)> = BTreeMap::new();
    for (path, expected) in model {
        let inode = path
            .split(|b| *b == b'/')
            .skip(1)
            .fold(InodeIdx::ROOT, |dir, name| index.lookup(dir, name).unwrap().unwrap());
        let attr = index.attr(inode).unwrap();
        let Meta { perm, uid, gid, mtime, xattrs } = &expected.meta;
        assert_eq!((attr.perm, attr.uid, attr.gid, attr.mtime), (*perm, *uid, *gid, *mtime));
        assert_eq!(attr.kind, expected.kind.file_kind());
        let found: Vec<_> = index.xattrs(inode).unwrap().iter().map(Result::unwrap).collect();
        let wanted: Vec<_> = xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(found, wanted);
        match &expected.kind {
            NodeKind::Regular { size, content } => {
                assert_eq!(attr.size, *size);
                match (content, index.data(inode).unwrap()) {
                    (Content::Inline(a), FileData::Inline(b)) => assert_eq!(**a, *b),
                    (Content::Hole, FileData::Hole) => assert_eq!(attr.blocks, 0),
                    (a, b) => panic!("{a:?} became {b:?}"),
                }
            }
            NodeKind::Symlink(target) => assert_eq!(index.symlink(inode).unwrap(), &**target),
            NodeKind::CharDevice(d) | NodeKind::BlockDevice(d) => assert_eq!(attr.device, *d),
            NodeKind::Directory => {
                let prefix = [path.as_slice(), b"/"].concat();
                let names: Vec<_> = model
                    .keys()
                    .filter_map(|p| p.strip_prefix(&prefix[..]))
                    .filter(|rest| !rest.contains(&b'/'))
                    .collect();
                let dir = index.dir(inode).unwrap();
                let found: Vec<_> = dir.iter().map(|entry| entry.unwrap().name).collect();
                assert_eq!(found, names);
                assert_eq!(index.lookup(inode, b"not there").unwrap(), None);
            }
            NodeKind::Fifo | NodeKind::Socket => {}
        }
        if expected.kind != NodeKind::Directory {
            let (first, count) = links.entry(expected.link).or_insert((inode, 0));
            assert_eq!(*first, inode, "hard links are one inode");
            *count += 1;
        }
    }
    for (inode, count) in links.values() {
        assert_eq!(index.attr(*inode).unwrap().nlink, *count);
    }
}

/// Returns the result of checking an index of two nested directories and a file, with the link
/// count of inode number `inode` replaced.
fn checked_with_nlink(inode: usize, nlink: u32) -> Result<Checked, FormatError> {
    let mut tree = Tree::new(TreeLimits::default());
    let insert = |tree: &mut Tree, dir, name: &[u8], kind| {
        tree.insert(dir, name, Meta::default(), kind).unwrap()
    };
    let above = insert(&mut tree, NodeId::ROOT, b"a", NodeKind::Directory);
    insert(&mut tree, above, b"b", NodeKind::Directory);
    insert(&mut tree, above, b"c", NodeKind::Fifo);
    let mut bytes = written(&tree).bytes().to_vec();
    let (header, _) = RawHeader::ref_from_prefix(&bytes).unwrap();
    let inodes = header.sections[Section::Inodes as usize].offset.get();
    let at = usize::try_from(inodes).unwrap()
        + inode * size_of::<RawInode>()
        + std::mem::offset_of!(RawInode, nlink);
    bytes[at..at + 4].copy_from_slice(&nlink.to_le_bytes());
    check_index(&Index::from_bytes(bytes).unwrap())
}

#[test]
fn a_wrong_number_of_links_is_found() {
    for (inode, nlink) in [(0, 3), (1, 3), (2, 2), (3, 1)] {
        checked_with_nlink(inode, nlink).unwrap();
        for wrong in [0, nlink - 1, nlink + 1, u32::MAX] {
            let error = checked_with_nlink(inode, wrong).unwrap_err();
            let at = inode as u64;
            let expected = FormatError::Corrupt { what: "a wrong number of links", at };
            assert_eq!(error.to_string(), expected.to_string());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn an_index_describes_its_tree(ops in prop::collection::vec(op(), 0..60)) {
        let (tree, model) = build(&ops);
        let index = written(&tree);
        compare(&index, &model);
        let checked = check_index(&index).unwrap();
        prop_assert!(checked.directories >= 1);
        prop_assert_eq!(index.config(), br#"{"a":1}"#);
        prop_assert_eq!(index.kind(), Kind::Directory);
        prop_assert_eq!(written(&tree).digest(), index.digest());
    }

    #[test]
    fn no_flipped_bit_makes_reading_panic(
        ops in prop::collection::vec(op(), 1..30),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..20),
    ) {
        let (tree, _) = build(&ops);
        let mut bytes = written(&tree).bytes().to_vec();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(index) = Index::from_bytes(bytes) {
            let _ = check_index(&index);
        }
    }

    #[test]
    fn no_cut_index_opens(ops in prop::collection::vec(op(), 1..20), cut in any::<prop::sample::Index>()) {
        let (tree, _) = build(&ops);
        let bytes = written(&tree).bytes().to_vec();
        let cut = cut.index(bytes.len());
        prop_assert!(Index::from_bytes(bytes[..cut].to_vec()).is_err());
    }
}
