//! Tests the parts of a snapshot: their union is the whole, and only directories are in both.

use std::collections::BTreeMap;
use std::sync::Arc;

use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::ids::{BlobId, Kind};
use inlay_store::pack::{BlobStore, FileSink, KnownChunks, PackError, PackOptions, Packer};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use proptest::prelude::*;

use inlay_store::ids::{Digest, IndexDigest};

use super::tests::Refuses;
use super::*;

/// Large, but not large enough to be set apart.
const MIDDLE: u64 = APART_LEN_MIN - 1;

#[derive(Clone, Debug)]
enum Node {
    File { len: u64, attribute: bool },
    Link,
    Directory(BTreeMap<String, Node>),
}

fn directory() -> impl Strategy<Value = BTreeMap<String, Node>> {
    let leaf = prop_oneof![
        4 => (
            prop::sample::select(vec![0, 5, 3000, MIDDLE, APART_LEN_MIN]),
            prop::bool::weighted(0.1),
        )
            .prop_map(|(len, attribute)| Node::File { len, attribute }),
        1 => Just(Node::Link),
    ];
    let node = leaf.prop_recursive(4, 40, 6, |inner| {
        prop::collection::btree_map("[a-d]{1,2}", inner, 0..6).prop_map(Node::Directory)
    });
    prop::collection::btree_map("[a-d]{1,2}", node, 0..8)
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

fn attribute() -> Meta {
    let xattrs = [(b"user.a".to_vec().into(), b"1".to_vec().into())];
    Meta { xattrs: xattrs.into_iter().collect(), ..Meta::default() }
}

fn build(root: &BTreeMap<String, Node>, root_meta: Meta) -> Index {
    let options = PackOptions { workers: 1, ..PackOptions::default() };
    let mut packer = Packer::new(options, KnownChunks::new(), Box::new(Nowhere)).unwrap();
    let mut tree = Tree::new(TreeLimits::default());
    tree.set_meta(NodeId::ROOT, root_meta).unwrap();
    fill(&mut tree, &mut packer, NodeId::ROOT, root);
    let groups = packer.finish().unwrap();
    let mut bytes = Vec::new();
    let parts = IndexParts { kind: Kind::Filesystem, tree: &tree, groups: &groups, config: b"" };
    write_index(parts, &mut bytes).unwrap();
    Index::from_bytes(bytes).unwrap()
}

fn fill(tree: &mut Tree, packer: &mut Packer, dir: NodeId, entries: &BTreeMap<String, Node>) {
    for (name, node) in entries {
        let (kind, meta) = match node {
            Node::File { len, attribute: has_one } => {
                let size = *len;
                let data = vec![1; usize::try_from(size).unwrap()];
                let ranges: Vec<_> =
                    Some(0..size).filter(|data| !data.is_empty()).into_iter().collect();
                let content = packer.add_file(size, &ranges, &mut data.as_slice()).unwrap();
                let meta = if *has_one { attribute() } else { Meta::default() };
                (NodeKind::Regular { size, content }, meta)
            }
            Node::Link => (NodeKind::Symlink((*b"x").into()), Meta::default()),
            Node::Directory(_) => (NodeKind::Directory, Meta::default()),
        };
        let id = tree.insert(dir, name.as_bytes(), meta, kind).unwrap();
        if let Node::Directory(entries) = node {
            fill(tree, packer, id, entries);
        }
    }
}

/// Expected contents of each part: paths and types.
#[derive(Default, Debug, PartialEq)]
struct Model {
    common: BTreeMap<String, FileKind>,
    apart: BTreeMap<String, FileKind>,
}

impl Model {
    fn of(&mut self, path: &str, entries: &BTreeMap<String, Node>) {
        for (name, node) in entries {
            let path = format!("{path}/{name}");
            match node {
                Node::File { len, attribute } if *attribute || *len >= APART_LEN_MIN => {
                    for (at, _) in path.match_indices('/').skip(1) {
                        self.apart.insert(path[..at].to_owned(), FileKind::Directory);
                    }
                    self.apart.insert(path, FileKind::Regular);
                }
                Node::File { .. } => drop(self.common.insert(path, FileKind::Regular)),
                Node::Link => drop(self.common.insert(path, FileKind::Symlink)),
                Node::Directory(entries) => {
                    self.of(&path, entries);
                    self.common.insert(path, FileKind::Directory);
                }
            }
        }
    }

    fn parts(&self) -> &'static str {
        let has_files = |part: &BTreeMap<_, _>| part.values().any(|k| *k == FileKind::Regular);
        match (has_files(&self.common), has_files(&self.apart)) {
            (true, true) => "two",
            (false, true) => "whole",
            (_, false) => "common",
        }
    }
}

/// Returns all listed paths, after looking up each.
fn shown(fs: &SnapshotFs) -> BTreeMap<String, FileKind> {
    let mut all = BTreeMap::new();
    let mut rest = vec![(InodeIdx::ROOT, String::new())];
    while let Some((dir, path)) = rest.pop() {
        fs.read_dir(dir, DirOffset(0), |item| {
            if matches!(item.name, b"." | b"..") {
                return Ok(Emit::More);
            }
            let found = fs.lookup(dir, item.name)?.expect("what is listed is found");
            assert_eq!((found.inode, found.attr.kind), (item.inode, item.kind));
            let path = format!("{path}/{}", std::str::from_utf8(item.name).unwrap());
            if item.kind == FileKind::Directory {
                rest.push((item.inode, path.clone()));
            }
            assert_eq!(all.insert(path, item.kind), None);
            Ok(Emit::More)
        })
        .unwrap();
    }
    all
}

/// Checks that entries that are not listed cannot be looked up.
fn nothing_else(index: &Index, fs: &SnapshotFs, wanted: &BTreeMap<String, FileKind>) {
    let whole = SnapshotFs::new(index.clone(), Arc::new(Refuses));
    for path in shown(&whole).into_keys() {
        let mut at = Some(InodeIdx::ROOT);
        for name in path.split('/').skip(1) {
            at = at.and_then(|dir| fs.lookup(dir, name.as_bytes()).unwrap()).map(|f| f.inode);
        }
        assert_eq!(at.is_some(), wanted.contains_key(&path), "{path}");
    }
}

proptest! {
    #[test]
    fn two_parts_are_the_whole(root in directory()) {
        let mut model = Model::default();
        model.of("", &root);
        let index = build(&root, Meta::default());
        let parts = Parts::of(&index).unwrap();
        let id = index.digest();
        prop_assert_eq!(Parts::from_bytes(&parts.to_bytes(&id), &id), Some(parts.clone()));
        let (split, name) = match parts {
            Parts::Two(split) => (Some(split), "two"),
            Parts::Common => (None, "common"),
            Parts::Whole => (None, "whole"),
        };
        prop_assert_eq!(name, model.parts());
        if name == "common" {
            let fs = SnapshotFs::with_view(index, Arc::new(Refuses), View::Common);
            prop_assert_eq!(&shown(&fs), &model.common);
            return Ok(());
        }
        let Some(split) = split else { return Ok(()) };
        for (view, wanted) in
            [(View::Common, &model.common), (View::Apart(split), &model.apart)]
        {
            let fs = SnapshotFs::with_view(index.clone(), Arc::new(Refuses), view.clone());
            let shown = shown(&fs);
            prop_assert_eq!(&shown, wanted);
            nothing_else(&index, &fs, &shown);
            let has_more = matches!(view, View::Apart(_));
            prop_assert!(!fs.has_large_files() || has_more);
            prop_assert!(!fs.has_xattrs() || has_more);
        }
    }
}

fn mixed() -> BTreeMap<String, Node> {
    let file = |len| Node::File { len, attribute: false };
    BTreeMap::from([("a".to_owned(), file(20)), ("b".to_owned(), file(APART_LEN_MIN))])
}

#[test]
fn xattrs_on_non_files_keep_a_snapshot_whole() {
    assert!(matches!(Parts::of(&build(&mixed(), Meta::default())).unwrap(), Parts::Two(_)));
    assert_eq!(Parts::of(&build(&mixed(), attribute())).unwrap(), Parts::Whole);
}

#[test]
fn a_kept_finding_that_was_changed_is_none() {
    let index = build(&mixed(), Meta::default());
    let id = index.digest();
    let kept = Parts::of(&index).unwrap().to_bytes(&id);
    for bit in 0..kept.len() * 8 {
        let mut bytes = kept.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Parts::from_bytes(&bytes, &id), None);
    }
    for len in 0..kept.len() {
        assert_eq!(Parts::from_bytes(&kept[..len], &id), None);
    }
    let other = IndexDigest(Digest::of(b"another"));
    assert_eq!(Parts::from_bytes(&kept, &other), None);
}
