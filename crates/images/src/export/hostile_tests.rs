//! Tests exports of forged indexes: each must fail, or produce a bounded amount of output.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;

use inlay_store::format::{Index, InodeIdx};
use inlay_store::tree::NodeId;
use inlay_testkit::scratch::scratch;

use super::testing::{Builder, meta};
use super::*;
use crate::import::NoProgress;

/// Offsets of fields in an inode's record and in the header: see `docs/FORMAT.md`.
const INODE_LEN: usize = 64;
const NLINK: usize = 12;
const FIRST_ENTRY: usize = 48;
const ENTRY_COUNT: usize = 56;
const INODES_OFFSET: usize = 32;

/// Returns zeros for every range.
struct Zeros;

impl FileBytes for Zeros {
    fn copy(&self, _: InodeIdx, range: Range<u64>, out: &mut dyn Write) -> Result<(), CopyError> {
        io::copy(&mut io::Read::take(io::repeat(0), range.end - range.start), out)?;
        Ok(())
    }
}

/// Counts bytes and fails past 1 GiB, far more than any valid export of these trees.
struct Bounded(u64);

impl Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0 += buf.len() as u64;
        assert!(self.0 < 1 << 30, "an export without end");
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn export(index: &Index) -> Export<'_> {
    let compression = LayerCompression::Gzip;
    Export { index, bytes: &Zeros, progress: &NoProgress, compression }
}

fn as_tar(index: &Index) -> Result<Report, ExportError> {
    tar::write(&export(index), tar::Purpose::Archive, &mut Bounded(0))
}

fn inode_at(bytes: &[u8], inode: InodeIdx) -> usize {
    let field: [u8; 8] = bytes[INODES_OFFSET..INODES_OFFSET + 8].try_into().unwrap();
    usize::try_from(u64::from_le_bytes(field)).unwrap() + inode.0 as usize * INODE_LEN
}

fn refused(bytes: Vec<u8>, part: &str) {
    let index = Index::from_bytes(bytes).unwrap();
    let scratch = scratch().unwrap();
    let target = Target::Dir(scratch.path().join("out"));
    for result in [as_tar(&index), export(&index).run(&target)] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn directories_that_share_their_entries_do_not_multiply() {
    let mut builder = Builder::new();
    for name in [b"a", b"b", b"c"] {
        let dir = builder.dir(NodeId::ROOT, name);
        for file in 0..if name == b"a" { 50 } else { 1 } {
            let name = format!("{file}");
            builder.file(dir, name.as_bytes(), meta(0o600), 1, std::slice::from_ref(&(0..1)));
        }
    }
    let index = builder.finish(b"").index;
    let mut bytes = index.bytes().to_vec();
    let place = |name: &[u8]| {
        let inode = index.lookup(InodeIdx::ROOT, name).unwrap().unwrap();
        inode_at(index.bytes(), inode)
    };
    for field in [FIRST_ENTRY..FIRST_ENTRY + 8, ENTRY_COUNT..ENTRY_COUNT + 4] {
        let from = place(b"a") + field.start..place(b"a") + field.end;
        for to in [b"b", b"c"] {
            bytes.copy_within(from.clone(), place(to) + field.start);
        }
    }
    refused(bytes, "share their entries");
}

#[test]
fn more_names_than_an_inode_says_are_refused() {
    let mut builder = Builder::new();
    let file = builder.file(NodeId::ROOT, b"a", meta(0o600), 1, std::slice::from_ref(&(0..1)));
    for name in [b"b", b"c"] {
        builder.tree.link(NodeId::ROOT, name, file).unwrap();
    }
    let index = builder.finish(b"").index;
    let inode = index.lookup(InodeIdx::ROOT, b"a").unwrap().unwrap();
    let mut bytes = index.bytes().to_vec();
    let at = inode_at(&bytes, inode) + NLINK;
    bytes[at..at + 4].copy_from_slice(&2u32.to_le_bytes());
    refused(bytes, "more names than it says");
}

#[test]
fn a_tree_may_be_deep_but_not_bottomless() {
    let tree = |depth| {
        let mut builder = Builder::new();
        let mut dir = NodeId::ROOT;
        for _ in 0..depth {
            dir = builder.dir(dir, b"d");
        }
        builder.file(dir, b"f", meta(0o600), 1, std::slice::from_ref(&(0..1)));
        builder.finish(b"").index
    };
    let deep = tree(walk::DEPTH_MAX);
    assert_eq!(as_tar(&deep).unwrap().entries, walk::DEPTH_MAX as u64 + 2);
    refused(tree(walk::DEPTH_MAX + 1).bytes().to_vec(), "depth");

    // More directories than a process may have open.
    let scratch = scratch().unwrap();
    let target = Target::Dir(scratch.path().join("out"));
    assert_eq!(export(&tree(1500)).run(&target).unwrap().entries, 1502);
}

#[test]
fn flipped_bits_give_errors_or_bounded_nonsense() {
    let mut builder = Builder::new();
    let dir = builder.dir(NodeId::ROOT, b"dir");
    let sizes = [0u64, 10, 3000, 700_000];
    let files: Vec<NodeId> = sizes
        .iter()
        .map(|size| {
            let name = format!("{size}");
            builder.file(
                dir,
                name.as_bytes(),
                meta(0o600),
                *size,
                std::slice::from_ref(&(0..*size)),
            )
        })
        .collect();
    builder.file(dir, b"sparse", meta(0o600), 1 << 20, &[4096..8192, 65536..70000]);
    builder.tree.link(NodeId::ROOT, b"again", files[2]).unwrap();
    let index = builder.finish(b"{}").index;
    let (mut good, mut bad) = (0, 0);
    // Flips one bit of every byte before the config, at a position that varies by byte.
    for at in 0..index.bytes().len() {
        let mut bytes = index.bytes().to_vec();
        bytes[at] ^= 1 << (at % 8);
        match Index::from_bytes(bytes).ok().map(|index| as_tar(&index)) {
            Some(Ok(_)) => good += 1,
            _ => bad += 1,
        }
    }
    // Both outcomes occur: a changed name may be another valid name, a changed offset is rarely
    // valid.
    assert!(good > 100 && bad > 100, "{good} {bad}");
}
