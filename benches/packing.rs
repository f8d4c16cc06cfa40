//! How group size, zstd level and chunk sizes trade store size, speed and fetched bytes.
//!
//! `cargo bench -p inlay-store --bench packing -- DIR [OLDER_DIR]` packs the tree DIR in memory with
//! each setting. With OLDER_DIR, it also tells how much of DIR's large files is found in OLDER_DIR's
//! chunks, for several chunk sizes. `limit` is BLAKE3 plus zstd of the same bytes in pieces of a
//! group's size on all cores, with nothing else: the most that any packer could reach. `limit DIR`
//! instead of the directories prints that figure alone, for the default sizes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use inlay_store::format::Blob;
use inlay_store::ids::{BlobId, Digest};
use inlay_store::pack::{
    BlobStore, ChunkLen, FileSink, KnownChunks, PackError, PackOptions, PackStats, Packer, read_toc,
};

struct Memory {
    kept: Option<Sender<(BlobId, Vec<u8>)>>,
}

impl BlobStore for Memory {
    fn put(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<(), PackError> {
        if let Some(kept) = &self.kept {
            kept.send((id, bytes)).unwrap();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

fn files_below(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_below(&entry.path(), out);
        } else if kind.is_file() {
            out.push(entry.path());
        }
    }
}

fn load(dir: &str) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    files_below(Path::new(dir), &mut paths);
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

fn pack(
    files: &[Vec<u8>],
    options: PackOptions,
    known: KnownChunks,
    kept: Option<Sender<(BlobId, Vec<u8>)>>,
) -> (PackStats, f64) {
    let start = Instant::now();
    let mut packer = Packer::new(options, known, Box::new(Memory { kept })).unwrap();
    for file in files {
        let size = file.len() as u64;
        packer.add_file(size, std::slice::from_ref(&(0..size)), &mut Cursor::new(file)).unwrap();
    }
    let groups = packer.finish().unwrap();
    (groups.stats, start.elapsed().as_secs_f64())
}

fn known_from(files: &[Vec<u8>], options: PackOptions) -> KnownChunks {
    let (kept, made) = channel();
    pack(files, options, KnownChunks::new(), Some(kept));
    let mut known = KnownChunks::new();
    for (id, bytes) in made {
        let end = bytes.len();
        let toc_len = u64::from_le_bytes(bytes[end - 16..end - 8].try_into().unwrap());
        let toc_offset = end as u64 - toc_len;
        let toc = &bytes[usize::try_from(toc_offset).unwrap()..];
        let toc_digest = Digest::of(toc);
        let blob = Blob { id, size: end as u64, toc_offset, toc_digest };
        known.add_blob(blob, &read_toc(toc, toc_offset, toc_digest).unwrap(), usize::MAX);
    }
    known
}

/// BLAKE3 of every piece, zstd of it, and BLAKE3 of the result, on all cores.
fn limit(files: &[Vec<u8>], options: &PackOptions) -> f64 {
    let all: Vec<u8> = files.concat();
    let pieces: Vec<&[u8]> = all.chunks(options.group_len).collect();
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..options.workers {
            scope.spawn(|| {
                let mut compressor = zstd::bulk::Compressor::new(options.level).unwrap();
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    std::hint::black_box(blake3::hash(piece));
                    let stored = compressor.compress(piece).unwrap();
                    std::hint::black_box(blake3::hash(&stored));
                }
            });
        }
    });
    start.elapsed().as_secs_f64()
}

fn table_of_groups(files: &[Vec<u8>], bytes: f64) {
    println!(" group  level   stored   ratio  MB/s  limit  share");
    for group_kib in [64, 128, 256, 512, 1024, 2048] {
        for level in [1, 3, 6, 9, 12] {
            if level != 3 && group_kib != 512 {
                continue;
            }
            let options =
                PackOptions { level, group_len: group_kib << 10, ..PackOptions::default() };
            let (stats, seconds) = pack(files, options, KnownChunks::new(), None);
            let most = limit(files, &options);
            println!(
                "{group_kib:>5}K {level:>6} {:>7.1}M {:>7.3} {:>5.0} {:>6.0} {:>6.2}",
                stats.stored_bytes as f64 / 1_048_576.0,
                stats.stored_bytes as f64 / bytes,
                bytes / 1e6 / seconds,
                bytes / 1e6 / most,
                most / seconds,
            );
        }
    }
}

fn table_of_chunks(files: &[Vec<u8>], older: &[Vec<u8>], bytes: f64) {
    println!("chunks min/avg/max K     known   stored");
    for (min, avg, max) in
        [(4, 16, 64), (8, 32, 128), (16, 64, 256), (32, 128, 512), (64, 256, 1024)]
    {
        let chunk_len = ChunkLen { min: min << 10, avg: avg << 10, max: max << 10 };
        let options = PackOptions { chunk_len, ..PackOptions::default() };
        let (stats, _) = pack(files, options, known_from(older, options), None);
        println!(
            "{:>20} {:>8.1}% {:>7.1}M",
            format!("{min}/{avg}/{max}"),
            stats.known_bytes as f64 * 100.0 / bytes,
            stats.stored_bytes as f64 / 1_048_576.0,
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if let [word, dir] = args.as_slice()
        && word == "limit"
    {
        let files = load(dir);
        let bytes = files.iter().map(Vec::len).sum::<usize>() as f64;
        println!("{:.1}", bytes / 1e6 / limit(&files, &PackOptions::default()));
        return;
    }
    let Some(dir) = args.first() else {
        println!("packing: give a directory to pack (and an older version of it)");
        return;
    };
    let files = load(dir);
    let bytes = files.iter().map(Vec::len).sum::<usize>() as f64;
    println!("{} files, {:.1} MiB", files.len(), bytes / 1_048_576.0);
    table_of_groups(&files, bytes);
    if let Some(older) = args.get(1) {
        table_of_chunks(&files, &load(older), bytes);
    }
}
