//! What it costs reads that first touches are recorded.
//!
//! `cargo bench --bench touches` packs 20,000 files of 4,000 bytes and a large one of 64 MiB, brings them into
//! a host cache, and reads them as the FUSE threads do, without the kernel between: so what a read costs
//! is as little as it can be. In each round the same reads are made while touches are recorded, while they are
//! not (`inlay mount --record-profile off`), and once more while they are not, in changing order. The
//! second ratio says how much of the first is noise. Medians over rounds, in brackets the middle half; ratios
//! are taken round by round. ROUNDS=61 makes more rounds than 31.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

use std::hint::black_box;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use inlay_prefetch::{FetchLimits, Fetcher};
use inlay_snapshots::content::{
    CacheWaits, ContentOptions, Now, Observers, SnapshotContent, Tracker,
};
use inlay_store::cache::{Cache, CacheOptions};
use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::format::{FileData, Index, InodeIdx, Timestamp};
use inlay_store::ids::{BlobId, Kind};
use inlay_store::pack::{BlobStore, FileSink, KnownChunks, PackError, PackOptions, Packer};
use inlay_store::remote::{ObjectKey, Remote, StoreConfig};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use tokio::runtime::Runtime;

const FILES: u32 = 20_000;
const FILE_LEN: usize = 4000;
const LARGE_LEN: usize = 64 << 20;
const PIECE: usize = 128 << 10;
const PAGE: usize = 4096;

/// The same bytes and numbers in every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

struct Blobs(Mutex<Sender<(BlobId, Vec<u8>)>>);

impl BlobStore for Blobs {
    fn put(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<(), PackError> {
        self.0.lock().unwrap().send((id, bytes)).unwrap();
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

/// A snapshot, all of whose contents are in a cache.
struct Host {
    runtime: Runtime,
    index: Index,
    cache: Cache,
    fetcher: Fetcher,
    small: Vec<InodeIdx>,
    large: InodeIdx,
    _dirs: [tempfile::TempDir; 2],
}

fn pack() -> (Index, Vec<(BlobId, Vec<u8>)>) {
    let (blobs, made) = channel();
    let mut packer =
        Packer::new(PackOptions::default(), KnownChunks::new(), Box::new(Blobs(Mutex::new(blobs))))
            .unwrap();
    let mut tree = Tree::new(TreeLimits::default());
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mtime = Timestamp { secs: 1_700_000_000, nanos: 0 };
    let meta = Meta { perm: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
    let names = (0..FILES).map(|file| (format!("module{file:05}"), FILE_LEN));
    for (name, len) in names.chain([("zlarge".into(), LARGE_LEN)]) {
        let bytes = numbers.bytes(len);
        let size = len as u64;
        let content =
            packer.add_file(size, std::slice::from_ref(&(0..size)), &mut bytes.as_slice()).unwrap();
        let kind = NodeKind::Regular { size, content };
        tree.insert(NodeId::ROOT, name.as_bytes(), meta.clone(), kind).unwrap();
    }
    let groups = packer.finish().unwrap();
    let mut bytes = Vec::new();
    let parts = IndexParts { kind: Kind::Image, tree: &tree, groups: &groups, config: b"" };
    write_index(parts, &mut bytes).unwrap();
    (Index::from_bytes(bytes).unwrap(), made.into_iter().collect())
}

impl Host {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (index, blobs) = pack();
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let remote = Remote::open(&StoreConfig::new(dirs[0].path().to_str().unwrap())).unwrap();
        for (id, bytes) in blobs {
            let key = ObjectKey::Blob(id);
            runtime.block_on(remote.put_immutable(&key, bytes.into())).unwrap();
        }
        let cache = Cache::open(dirs[1].path(), CacheOptions::default()).unwrap();
        let limits = FetchLimits::default();
        let fetcher = Fetcher::new(remote, Some(cache.clone()), limits, runtime.handle().clone());
        let find = |name: &str| index.lookup(InodeIdx::ROOT, name.as_bytes()).unwrap().unwrap();
        let small = (0..FILES).map(|file| find(&format!("module{file:05}"))).collect();
        let large = find("zlarge");
        let host = Self { runtime, cache, fetcher, small, large, index, _dirs: dirs };
        host.warm();
        host
    }

    /// Reads everything, and waits until the cache has it.
    fn warm(&self) {
        let content = self.content(Recording::Off);
        let read = |inode, offset, len| {
            let read = content.read(inode, offset, u32::try_from(len).unwrap());
            self.runtime.block_on(read).unwrap();
        };
        for inode in &self.small {
            read(*inode, 0, FILE_LEN);
        }
        for offset in (0..LARGE_LEN).step_by(PIECE) {
            read(self.large, offset as u64, PIECE);
        }
        while self.fetcher.stats().flights > 0 || content.whole(self.large).is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The contents as a new mount has them: nothing was touched yet.
    fn content(&self, recording: Recording) -> SnapshotContent {
        let tracker = Arc::new(Tracker::new(self.index.group_count()));
        if recording == Recording::Off {
            assert!(tracker.finish(&self.index, None).is_none());
        }
        SnapshotContent::observed(
            self.index.clone(),
            Some(self.cache.clone()),
            self.fetcher.clone(),
            ContentOptions::default(),
            self.runtime.handle().clone(),
            Some(Observers { tracker, waits: Arc::new(CacheWaits::default()), source: None }),
        )
    }

    /// One small file of each group: each of these reads is a first touch.
    fn one_of_each_group(&self) -> Vec<Read> {
        let mut last = None;
        let first = |inode: &&InodeIdx| {
            let FileData::Extents(extents) = self.index.data(**inode).unwrap() else {
                return false;
            };
            let group = extents.iter().next().unwrap().unwrap().group;
            last.replace(group) != Some(group)
        };
        self.small.iter().filter(first).map(|inode| (*inode, 0, FILE_LEN)).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Recording {
    On,
    Off,
}

/// Which file, from which byte on, how many.
type Read = (InodeIdx, u64, usize);

/// Reads that are timed.
struct Row {
    name: &'static str,
    reads: Vec<Read>,
    /// How often a mount is made anew for them, so that they take long enough to be timed.
    mounts: usize,
    /// Whether they are made once before, so that nothing is touched for the first time.
    before: usize,
}

fn rows(host: &Host) -> Vec<Row> {
    let small: Vec<Read> = host.small.iter().map(|inode| (*inode, 0, FILE_LEN)).collect();
    let mut numbers = Numbers(7);
    let pages = (LARGE_LEN / PAGE) as u64;
    let large = |offset: u64, len| (host.large, offset, len);
    let pieces = (0..LARGE_LEN).step_by(PIECE).map(|offset| large(offset as u64, PIECE));
    let random = (0..20_000).map(|_| large(numbers.next() % pages * PAGE as u64, PAGE));
    vec![
        Row { name: "20,000 files", reads: small.clone(), mounts: 1, before: 0 },
        Row { name: "the same again", reads: small, mounts: 1, before: 1 },
        Row { name: "one file a group", reads: host.one_of_each_group(), mounts: 100, before: 0 },
        Row { name: "large, 128 KiB", reads: pieces.collect(), mounts: 4, before: 0 },
        Row { name: "large, 4 KiB", reads: random.collect(), mounts: 1, before: 0 },
    ]
}

/// Nanoseconds a read.
fn measure(host: &Host, row: &Row, recording: Recording) -> f64 {
    let mut buf = vec![0; PIECE];
    let mut time = Duration::ZERO;
    for _ in 0..row.mounts {
        let content = host.content(recording);
        for turn in 0..=row.before {
            let begin = Instant::now();
            for (inode, offset, len) in &row.reads {
                let now = content.read_now(*inode, *offset, &mut buf[..*len]).unwrap();
                assert_eq!(black_box(now), Now::Filled(*len));
            }
            if turn == row.before {
                time += begin.elapsed();
            }
        }
    }
    time.as_nanos() as f64 / (row.mounts * row.reads.len()) as f64
}

/// The median, and where the middle half begins and ends.
fn middle(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [2, 1, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(31);
    let host = Host::new();
    println!("{rounds} rounds, {} groups", host.index.group_count());
    println!(
        "{:<17} {:>9} {:>9} {:>22} {:>22}",
        "ns a read", "recorded", "not", "recorded / not", "not / not"
    );
    let turns = [Recording::On, Recording::Off, Recording::Off];
    for row in rows(&host) {
        let mut times: [Vec<f64>; 3] = Default::default();
        for round in 0..=rounds {
            for turn in 0..turns.len() {
                let who = (turn + round) % turns.len();
                let time = measure(&host, &row, turns[who]);
                // The first round warms up.
                if round > 0 {
                    times[who].push(time);
                }
            }
        }
        let ratio = |over: usize| {
            let ratios = times[over].iter().zip(&times[2]).map(|(one, other)| one / other);
            let [median, from, to] = middle(ratios.collect());
            format!("{median:.3} ({from:.3}–{to:.3})")
        };
        println!(
            "{:<17} {:>9.0} {:>9.0} {:>22} {:>22}",
            row.name,
            middle(times[0].clone())[0],
            middle(times[2].clone())[0],
            ratio(0),
            ratio(1),
        );
    }
    host.runtime.block_on(host.fetcher.shutdown());
}
