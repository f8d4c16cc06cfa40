//! What an index costs: bytes per file, and the time to open one and look something up in it.
//!
//! `cargo bench -p inlay-store --bench index` makes indexes of 10, 100,000 and 1,000,000 files in a
//! temporary directory. Each round opens the file anew (`open`), then finds one file by its path of
//! three names and reads its attributes (`first lookup`). Medians over all rounds; the files are in
//! the page cache, as they are after being written.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use inlay_store::format::packed::{Effort, pack_index};
use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::format::{Index, InodeIdx, Timestamp};
use inlay_store::ids::Kind;
use inlay_store::pack::{BlobStore, FileSink, PackError};
use inlay_store::pack::{Content, KnownChunks, PackOptions, PackedGroups, Packer};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};

const ROUNDS: u32 = 1000;
/// Files in a directory, and directories in a directory above.
const FAN_OUT: u32 = 100;

struct Discard;

impl BlobStore for Discard {
    fn put(&mut self, _: inlay_store::ids::BlobId, _: Vec<u8>) -> Result<(), PackError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

fn meta(seed: u32) -> Meta {
    let mtime = Timestamp { secs: 1_700_000_000 + i64::from(seed / 7), nanos: 0 };
    Meta { perm: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
}

fn dir_name(number: u32) -> String {
    format!("package-{number:04}")
}

fn file_name(number: u32) -> String {
    format!("module_{number:03}.py")
}

/// Files of 3,000 bytes and more, each different: one piece of one group.
fn build(files: u32) -> (Tree, PackedGroups) {
    let options = PackOptions { level: 1, ..PackOptions::default() };
    let mut packer = Packer::new(options, KnownChunks::new(), Box::new(Discard)).unwrap();
    let mut tree = Tree::new(TreeLimits::default());
    let (mut outer, mut inner) = (NodeId::ROOT, NodeId::ROOT);
    let mut bytes = vec![0u8; 3000];
    for file in 0..files {
        if file % (FAN_OUT * FAN_OUT) == 0 {
            let name = dir_name(file / FAN_OUT / FAN_OUT);
            outer = tree
                .insert(NodeId::ROOT, name.as_bytes(), meta(file), NodeKind::Directory)
                .unwrap();
        }
        if file % FAN_OUT == 0 {
            let name = dir_name(file / FAN_OUT % FAN_OUT);
            inner = tree.insert(outer, name.as_bytes(), meta(file), NodeKind::Directory).unwrap();
        }
        bytes[..4].copy_from_slice(&file.to_le_bytes());
        let size = bytes.len() as u64;
        let content: Content =
            packer.add_file(size, std::slice::from_ref(&(0..size)), &mut bytes.as_slice()).unwrap();
        let name = file_name(file % FAN_OUT);
        let kind = NodeKind::Regular { size, content };
        tree.insert(inner, name.as_bytes(), meta(file), kind).unwrap();
    }
    (tree, packer.finish().unwrap())
}

fn look_up(index: &Index, file: u32) -> u64 {
    let names = [
        dir_name(file / FAN_OUT / FAN_OUT),
        dir_name(file / FAN_OUT % FAN_OUT),
        file_name(file % FAN_OUT),
    ];
    let inode = names
        .iter()
        .fold(InodeIdx::ROOT, |dir, name| index.lookup(dir, name.as_bytes()).unwrap().unwrap());
    index.attr(inode).unwrap().size
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn measure(path: &Path, files: u32) -> (f64, f64) {
    let (mut opens, mut lookups) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let file = round.wrapping_mul(2_654_435_761) % files;
        let start = Instant::now();
        let index = Index::open(path).unwrap();
        opens.push(start.elapsed());
        let start = Instant::now();
        black_box(look_up(&index, file));
        lookups.push(start.elapsed());
    }
    (median(opens), median(lookups))
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    println!("    files     index   B/file    packed   B/file   open µs   first lookup µs");
    for files in [10, 100_000, 1_000_000] {
        let (tree, groups) = build(files);
        let path = dir.path().join("index");
        let parts = IndexParts { kind: Kind::Image, tree: &tree, groups: &groups, config: b"" };
        let raw = write_index(parts, &mut File::create(&path).unwrap()).unwrap();
        let mut packed = Vec::new();
        pack_index(&std::fs::read(&path).unwrap(), Effort::Thorough, &mut packed).unwrap();
        let (open, lookup) = measure(&path, files);
        println!(
            "{files:>9} {:>8.1}K {:>8.1} {:>8.1}K {:>8.1} {open:>9.1} {lookup:>17.1}",
            raw as f64 / 1024.0,
            raw as f64 / f64::from(files),
            packed.len() as f64 / 1024.0,
            packed.len() as f64 / f64::from(files),
        );
    }
}
