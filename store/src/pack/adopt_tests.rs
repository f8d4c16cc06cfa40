//! Tests of adoption: an index made only of adopted files equals the index that they come from.

use std::io::Cursor;

use super::packer_tests::{Memory, Stored, known_from, noise, options, pack};
use super::*;
use crate::format::write::{IndexParts, write_index};
use crate::format::{Index, InodeIdx};
use crate::ids::Kind;
use crate::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};

fn tree(contents: &[(u64, Content)]) -> Tree {
    let mut tree = Tree::new(TreeLimits::default());
    for (number, (size, content)) in contents.iter().enumerate() {
        let kind = NodeKind::Regular { size: *size, content: content.clone() };
        tree.insert(NodeId::ROOT, format!("{number:03}").as_bytes(), Meta::default(), kind)
            .unwrap();
    }
    tree
}

fn index(tree: &Tree, groups: &PackedGroups) -> Index {
    let mut bytes = Vec::new();
    write_index(IndexParts { kind: Kind::Directory, tree, groups, config: b"" }, &mut bytes)
        .unwrap();
    Index::from_bytes(bytes).unwrap()
}

/// Files of every form: empty, inline, small, large, several that share groups, and sparse ones.
fn files() -> Vec<Vec<u8>> {
    let mut files: Vec<_> = [0, 5, 17, 100, 8000, 9000, 60_000, 200_000]
        .map(|n| noise(n, usize::try_from(n).unwrap()))
        .into();
    files.extend((0..40).map(|n| noise(1000 + n, 3000)));
    files
}

fn packed() -> (Index, Vec<u64>, PackedGroups, Stored) {
    let files = files();
    let sizes: Vec<u64> = files.iter().map(|file| file.len() as u64).collect();
    let (contents, groups, stored) = pack(&files, KnownChunks::new());
    let contents: Vec<_> = sizes.iter().copied().zip(contents).collect();
    (index(&tree(&contents), &groups), sizes, groups, stored)
}

fn packer(known: KnownChunks) -> (Packer, Stored) {
    let stored = Stored::default();
    (Packer::new(options(), known, Box::new(Memory(stored.clone()))).unwrap(), stored)
}

fn inode(index: &Index, number: usize) -> InodeIdx {
    index.lookup(InodeIdx::ROOT, format!("{number:03}").as_bytes()).unwrap().unwrap()
}

#[test]
fn adopting_all_files_gives_the_same_index_and_stores_nothing() {
    let (old, sizes, groups, stored) = packed();
    for known in [KnownChunks::new(), known_from(&groups, &stored)] {
        let (mut packer, stored) = packer(known);
        let mut adopter = Adopter::new(old.clone());
        let contents: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| (*size, packer.adopt(&mut adopter, inode(&old, number)).unwrap()))
            .collect();
        let groups = packer.finish().unwrap();
        assert!(stored.lock().is_empty());
        assert_eq!(groups.stats.blobs, 0);
        assert_eq!(index(&tree(&contents), &groups).bytes(), old.bytes());
    }
}

#[test]
fn a_group_that_is_adopted_and_known_by_its_table_is_one_group() {
    let (old, sizes, groups, stored) = packed();
    let (mut packer, _) = packer(known_from(&groups, &stored));
    let mut adopter = Adopter::new(old.clone());
    let mut contents = Vec::new();
    for (number, (size, file)) in sizes.iter().zip(files()).enumerate() {
        // Every second file is found by its chunks.
        let content = if number % 2 == 0 {
            packer.adopt(&mut adopter, inode(&old, number)).unwrap()
        } else {
            let whole = 0..*size;
            packer.add_file(*size, std::slice::from_ref(&whole), &mut Cursor::new(file)).unwrap()
        };
        contents.push((*size, content));
    }
    let groups = packer.finish().unwrap();
    assert_eq!(index(&tree(&contents), &groups).bytes(), old.bytes());
}

#[test]
fn two_indexes_with_the_same_blobs_and_new_files_share_their_groups() {
    let (old, sizes, ..) = packed();
    let (mut packer, stored) = packer(KnownChunks::new());
    let (mut one, mut two) = (Adopter::new(old.clone()), Adopter::new(old.clone()));
    let last = sizes.len() - 1;
    let a = packer.adopt(&mut one, inode(&old, last)).unwrap();
    let b = packer.adopt(&mut two, inode(&old, last)).unwrap();
    assert_eq!(a, b);
    let new = noise(77, 3000);
    let whole = 0..3000;
    let c = packer.add_file(3000, std::slice::from_ref(&whole), &mut Cursor::new(new)).unwrap();
    let groups = packer.finish().unwrap();
    let made = index(&tree(&[(3000, a), (3000, b), (3000, c)]), &groups);
    assert_eq!((made.blob_count(), made.group_count()), (2, 2));
    assert_eq!(stored.lock().len(), 1);
}

#[test]
fn a_directory_is_not_adopted() {
    let (old, ..) = packed();
    let (mut packer, _) = packer(KnownChunks::new());
    let refused = packer.adopt(&mut Adopter::new(old), InodeIdx::ROOT).unwrap_err();
    assert!(matches!(refused, AdoptError::Format(_)), "{refused}");
}
