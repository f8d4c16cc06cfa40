//! Tests of the packer: contents round-trip, chunks are stored once, and output is deterministic.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::ids::Digest;

pub(super) type Stored = Arc<Mutex<HashMap<BlobId, Vec<u8>>>>;

pub(super) struct Memory(pub(super) Stored);

impl BlobStore for Memory {
    fn put(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<(), PackError> {
        self.0.lock().insert(id, bytes);
        Ok(())
    }
    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

struct Broken;

impl BlobStore for Broken {
    fn put(&mut self, _: BlobId, _: Vec<u8>) -> Result<(), PackError> {
        Err(PackError::Store("no more room".to_owned()))
    }
    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

pub(super) fn options() -> PackOptions {
    PackOptions {
        group_len: 16 << 10,
        blob_len: 64 << 10,
        inline_len_max: 16,
        small_len_max: 8 << 10,
        chunk_len: ChunkLen { min: 1 << 10, avg: 4 << 10, max: 16 << 10 },
        workers: 2,
        ..PackOptions::default()
    }
}

pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

pub(super) fn pack(files: &[Vec<u8>], known: KnownChunks) -> (Vec<Content>, PackedGroups, Stored) {
    let stored = Stored::default();
    let mut packer = Packer::new(options(), known, Box::new(Memory(stored.clone()))).unwrap();
    let contents = files
        .iter()
        .map(|file| {
            let size = file.len() as u64;
            packer.add_file(size, std::slice::from_ref(&(0..size)), &mut Cursor::new(file)).unwrap()
        })
        .collect();
    (contents, packer.finish().unwrap(), stored)
}

fn group_bytes(number: u32, groups: &PackedGroups, stored: &Stored) -> Vec<u8> {
    let group = groups.group(number).unwrap();
    let blob = groups.blob(group.blob).unwrap();
    let stored = stored.lock();
    let bytes = &stored[&blob.id];
    assert_eq!(Digest::of(bytes), blob.id.0);
    let start = usize::try_from(group.offset).unwrap();
    let bytes = &bytes[start..start + group.stored_len as usize];
    assert_eq!(Digest::of(bytes), group.digest.0);
    zstd::bulk::decompress(bytes, group.raw_len as usize).unwrap()
}

fn unpack(content: &Content, size: usize, groups: &PackedGroups, stored: &Stored) -> Vec<u8> {
    let mut out = vec![0; size];
    let mut take = |at: usize, len: usize, group, offset: u32| {
        let raw = group_bytes(group, groups, stored);
        out[at..at + len].copy_from_slice(&raw[offset as usize..offset as usize + len]);
    };
    match content {
        Content::Hole => {}
        Content::Inline(bytes) => out.copy_from_slice(bytes),
        Content::Single { group, group_offset } => take(0, size, *group, *group_offset),
        Content::Pieces(pieces) => {
            for e in &pieces.extents {
                let at = usize::try_from(e.file_offset).unwrap();
                take(at, e.len as usize, e.group, e.group_offset);
            }
            if let Some(digest) = pieces.digest {
                assert_eq!(digest, Digest::of(&out));
            }
        }
    }
    out
}

/// The chunks that a later packing learns from the tables of an earlier one.
pub(super) fn known_from(groups: &PackedGroups, stored: &Stored) -> KnownChunks {
    let mut known = KnownChunks::new();
    for number in 0.. {
        let Some(blob) = groups.blob(number) else { break };
        let bytes = stored.lock()[&blob.id].clone();
        let toc = &bytes[usize::try_from(blob.toc_offset).unwrap()..];
        let toc = read_toc(toc, blob.toc_offset, blob.toc_digest).unwrap();
        known.add_blob(blob, &toc, usize::MAX);
    }
    known
}

#[test]
fn equal_chunks_are_stored_once() {
    let file = noise(1, 200_000);
    let small = noise(2, 5_000);
    let (_, once, _) = pack(&[file.clone(), small.clone()], KnownChunks::new());
    let (contents, twice, stored) =
        pack(&[file.clone(), small.clone(), file.clone(), small.clone()], KnownChunks::new());
    assert_eq!(once.stats.stored_bytes, twice.stats.stored_bytes);
    assert_eq!(twice.stats.known_bytes, 205_000);
    assert!(unpack(&contents[2], file.len(), &twice, &stored) == file);
}

#[test]
fn chunks_of_other_snapshots_are_not_stored_again() {
    let files = vec![noise(1, 200_000), noise(2, 5_000), noise(3, 7)];
    let (_, first, stored) = pack(&files, KnownChunks::new());
    let known = known_from(&first, &stored);
    let mut changed = files.clone();
    // An insertion moves everything behind it: only content-defined chunks survive that.
    changed[0].splice(50_000..50_000, noise(9, 100));
    let (contents, second, more) = pack(&changed, known);
    assert!(second.stats.stored_bytes < 60_000, "{:?}", second.stats);
    more.lock().extend(stored.lock().clone());
    for (file, content) in changed.iter().zip(&contents) {
        assert!(unpack(content, file.len(), &second, &more) == *file);
    }
}

#[test]
fn an_unchanged_tree_stores_nothing() {
    let files = vec![noise(1, 200_000), noise(2, 5_000)];
    let (first_contents, first, stored) = pack(&files, KnownChunks::new());
    let (contents, second, new) = pack(&files, known_from(&first, &stored));
    assert_eq!(second.stats.blobs, 0);
    assert!(new.lock().is_empty());
    for (a, b) in first_contents.iter().zip(&contents) {
        let extents = |c: &Content, groups: &PackedGroups| match c {
            Content::Pieces(p) => p
                .extents
                .iter()
                .map(|e| (e.file_offset, e.len, groups.group(e.group).unwrap().digest))
                .collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        assert_eq!(extents(a, &first), extents(b, &second));
    }
}

#[test]
fn holes_are_not_read() {
    let stored = Stored::default();
    let mut packer =
        Packer::new(options(), KnownChunks::new(), Box::new(Memory(stored.clone()))).unwrap();
    let data = noise(4, 30_000);
    let ranges = [1 << 20..(1 << 20) + 10_000, 1 << 40..(1 << 40) + 20_000];
    let size = (1 << 40) + 50_000;
    let content = packer.add_file(size, &ranges, &mut Cursor::new(&data)).unwrap();
    let empty = packer.add_file(1 << 50, &[], &mut Cursor::new(&[])).unwrap();
    packer.finish().unwrap();
    assert_eq!(empty, Content::Hole);
    let Content::Pieces(pieces) = content else { panic!("{content:?}") };
    assert_eq!(pieces.digest, None);
    assert_eq!(pieces.extents.iter().map(|e| u64::from(e.len)).sum::<u64>(), 30_000);
    assert!(pieces.extents.iter().all(|e| e.file_offset >= 1 << 20));
}

#[test]
fn a_file_that_ends_early_is_an_error_and_leaves_no_trace() {
    let stored = Stored::default();
    let mut packer =
        Packer::new(options(), KnownChunks::new(), Box::new(Memory(stored.clone()))).unwrap();
    for want in [10, 1000, 100_000] {
        let short =
            packer.add_file(want, std::slice::from_ref(&(0..want)), &mut Cursor::new(b"123"));
        assert!(matches!(short, Err(PackError::Short { .. })), "{short:?}");
    }
    let file = noise(1, 3000);
    let content =
        packer.add_file(3000, std::slice::from_ref(&(0..3000)), &mut Cursor::new(&file)).unwrap();
    let groups = packer.finish().unwrap();
    assert!(unpack(&content, 3000, &groups, &stored) == file);
}

#[test]
fn a_store_that_fails_stops_the_packing_with_its_error() {
    let mut packer = Packer::new(options(), KnownChunks::new(), Box::new(Broken)).unwrap();
    let file = noise(1, 100_000);
    for _ in 0..1000 {
        let seed = noise(7, 8);
        let mut file = file.clone();
        file.extend(seed);
        if packer
            .add_file(
                file.len() as u64,
                std::slice::from_ref(&(0..file.len() as u64)),
                &mut Cursor::new(&file),
            )
            .is_err()
        {
            break;
        }
    }
    let error = packer.finish().unwrap_err();
    assert!(error.to_string().contains("no more room"), "{error}");
}

#[test]
fn ranges_that_lie_are_refused() {
    let mut packer = Packer::new(options(), KnownChunks::new(), Box::new(Broken)).unwrap();
    for ranges in [
        [0..2, 3..11],
        [5..8, 7..9],
        [
            1..2,
            #[allow(clippy::reversed_empty_ranges)]
            {
                5..4
            },
        ],
        [5..8, 1..2],
    ] {
        assert!(packer.add_file(10, &ranges, &mut Cursor::new(&[0; 20])).is_err(), "{ranges:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_file_comes_back(sizes in prop::collection::vec((prop_oneof![Just(0), 0usize..60_000], 0u64..6), 1..30)) {
        let files: Vec<_> = sizes.iter().map(|&(len, seed)| noise(seed, len)).collect();
        let (contents, groups, stored) = pack(&files, KnownChunks::new());
        for (file, content) in files.iter().zip(&contents) {
            prop_assert!(unpack(content, file.len(), &groups, &stored) == *file);
        }
        let (_, again, stored_again) = pack(&files, KnownChunks::new());
        prop_assert_eq!(groups.stats, again.stats);
        let ids = |s: &Stored| { let mut v: Vec<_> = s.lock().keys().copied().collect(); v.sort(); v };
        prop_assert_eq!(ids(&stored), ids(&stored_again), "the same input gives the same blobs");
    }
}
