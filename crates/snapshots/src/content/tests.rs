//! Tests reading files of a packed snapshot.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use inlay_fusefs::{ContentError, ContentSource, ReadNow};
use inlay_images::export::FileBytes;
use inlay_images::export::testing::{Builder, Snapshot, meta, noise};
use inlay_prefetch::{FetchLimits, Fetcher};
use inlay_store::cache::{Cache, CacheOptions};
use inlay_store::format::{FileData, GroupIdx, InodeIdx};
use inlay_store::profile::UnitSet;
use inlay_store::remote::{ObjectKey, Remote, StoreConfig};
use inlay_store::tree::NodeId;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::{ContentOptions, Now, Observers, SnapshotContent, Tracker};

const MIB: u64 = 1 << 20;

/// A snapshot in its own store, with a reader.
struct Mounted {
    content: SnapshotContent,
    fetcher: Fetcher,
    runtime: Runtime,
    store: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Mounted {
    fn new(snapshot: &Snapshot) -> Self {
        Self::observed(snapshot, None)
    }

    fn observed(snapshot: &Snapshot, tracker: Option<Arc<Tracker>>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let store = tempfile::tempdir().unwrap();
        let remote = Remote::open(&StoreConfig::new(store.path().to_str().unwrap())).unwrap();
        for (id, bytes) in snapshot.blobs() {
            let key = ObjectKey::Blob(id);
            let put = remote.put_immutable(&key, bytes.into());
            runtime.block_on(put).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheOptions::default()).unwrap();
        let handle = runtime.handle().clone();
        let limits = FetchLimits::default();
        let fetcher = Fetcher::new(remote, Some(cache.clone()), limits, handle.clone());
        let options = ContentOptions::default();
        let index = snapshot.index.clone();
        let observers =
            tracker.map(|tracker| Observers { tracker, waits: Arc::default(), source: None });
        let (cache, fetching) = (Some(cache), fetcher.clone());
        let content = SnapshotContent::observed(index, cache, fetching, options, handle, observers);
        Self { content, fetcher, runtime, store, cache: dir }
    }

    fn read(&self, inode: InodeIdx, offset: u64, len: u32) -> Result<Vec<u8>, ContentError> {
        let read = self.content.read(inode, offset, len);
        self.runtime.block_on(read).map(|bytes| bytes.to_vec())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            self.fetcher.shutdown().await;
            self.content.shutdown().await;
        });
        let stats = self.fetcher.stats();
        assert_eq!((stats.waiting, stats.tasks, stats.flights), (0, 0, 0));
    }
}

struct File {
    inode: InodeIdx,
    bytes: Vec<u8>,
}

/// Builds a snapshot with files of every storage form, and their expected contents.
fn snapshot() -> (Snapshot, Vec<File>) {
    let mut builder = Builder::new();
    let files: [(&str, u64, &[std::ops::Range<u64>]); 6] = [
        ("empty", 0, &[]),
        ("hole", 100_000, &[]),
        ("tiny", 20, std::slice::from_ref(&(0..20))),
        ("small", 9000, std::slice::from_ref(&(0..9000))),
        ("large", 3 * MIB + 5, std::slice::from_ref(&(0..3 * MIB + 5))),
        ("sparse", 3 * MIB, &[4096..MIB, 2 * MIB..2 * MIB + 8192]),
    ];
    for (name, size, data) in files {
        builder.file(NodeId::ROOT, name.as_bytes(), meta(0o644), size, data);
    }
    let snapshot = builder.finish(b"");
    let files = files.into_iter().map(|(name, size, data)| {
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        let mut from = 0;
        let all = noise(name.as_bytes(), bytes.len());
        for range in data {
            let to = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let len = to.len();
            bytes[to].copy_from_slice(&all[from..from + len]);
            from += len;
        }
        let inode = snapshot.index.lookup(InodeIdx::ROOT, name.as_bytes()).unwrap().unwrap();
        File { inode, bytes }
    });
    let files = files.collect();
    (snapshot, files)
}

fn expected(file: &File, offset: u64, len: u32) -> &[u8] {
    let size = file.bytes.len();
    let start = usize::try_from(offset).unwrap().min(size);
    &file.bytes[start..(start + len as usize).min(size)]
}

#[test]
fn whole_files_come_and_stay() {
    let (snapshot, files) = snapshot();
    let mounted = Mounted::new(&snapshot);
    for file in &files {
        let len = u32::try_from(file.bytes.len()).unwrap();
        assert_eq!(mounted.read(file.inode, 0, len + 10).unwrap(), file.bytes);
        let mut buf = vec![7; file.bytes.len() + 10];
        let now = mounted.content.read_now(file.inode, 0, &mut buf).unwrap();
        assert_eq!(now, Now::Filled(file.bytes.len()));
        assert_eq!(buf[..file.bytes.len()], file.bytes);
    }
    // No group was fetched twice.
    let fetched: u64 = mounted.fetcher.stats().groups.iter().sum();
    for file in &files {
        let len = u32::try_from(file.bytes.len()).unwrap();
        assert_eq!(mounted.read(file.inode, 0, len).unwrap(), file.bytes);
    }
    assert_eq!(mounted.fetcher.stats().groups.iter().sum::<u64>(), fetched);
    assert!(fetched > 0 && u64::from(snapshot.index.group_count()) == fetched);
}

#[test]
fn the_kernels_adapter_waits_only_when_it_has_to() {
    let (snapshot, files) = snapshot();
    let mounted = Mounted::new(&snapshot);
    let source: Arc<dyn ContentSource> = Arc::new(mounted.content.clone());
    let file = &files[4];
    let mut buf = vec![0; 10_000];
    let now = source.read_now(file.inode, 500, &mut buf);
    assert_eq!(now, Ok(ReadNow::WouldWait));
    assert_eq!(mounted.fetcher.stats().demand_requests(), 0);
    let (done, came) = mpsc::channel();
    let send = Box::new(move |read| done.send(read).unwrap());
    source.read_later(file.inode, 500, 10_000, send);
    let bytes = came.recv().unwrap().unwrap();
    assert_eq!(bytes, file.bytes[500..10_500]);
    assert_eq!(source.read_now(file.inode, 500, &mut buf), Ok(ReadNow::Filled));
    assert_eq!(buf, file.bytes[500..10_500]);
}

#[test]
fn copies_contain_the_requested_range_and_fail_past_the_end() {
    let (snapshot, files) = snapshot();
    let mounted = Mounted::new(&snapshot);
    for (place, range) in [(3, 0..9000), (4, 0..3 * MIB + 5), (5, 4096..MIB), (4, 7..2 * MIB)] {
        let mut out = Vec::new();
        mounted.content.copy(files[place].inode, range.clone(), &mut out).unwrap();
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert!(out == files[place].bytes[range]);
    }
    let past = mounted.content.copy(files[3].inode, 0..9001, &mut Vec::new());
    assert!(past.is_err());
}

#[test]
fn a_sequential_reader_is_read_ahead_of() {
    let (snapshot, files) = snapshot();
    let mounted = Mounted::new(&snapshot);
    let file = &files[4];
    for place in 0..4 {
        let offset = place * 65_536;
        assert_eq!(
            mounted.read(file.inode, offset, 65_536).unwrap(),
            expected(file, offset, 65_536)
        );
    }
    assert!(mounted.fetcher.stats().ahead_requests() > 0);
}

#[test]
fn a_lost_blob_and_a_damaged_one_are_errors_that_name_it() {
    let (snapshot, files) = snapshot();
    let mounted = Mounted::new(&snapshot);
    let path = blob_file(mounted.store.path());
    let good = std::fs::read(&path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::write(&path, vec![1; good.len()]).unwrap();
    let error = mounted.read(files[3].inode, 0, 100).unwrap_err();
    assert!(matches!(&error, ContentError::Corrupt { object, .. } if object.contains(&name)));
    std::fs::remove_file(&path).unwrap();
    let error = mounted.read(files[3].inode, 0, 100).unwrap_err();
    assert!(matches!(&error, ContentError::NotFound { object } if object.contains(&name)));
    // Errors are not cached.
    std::fs::write(&path, good).unwrap();
    assert_eq!(mounted.read(files[3].inode, 0, 100).unwrap(), files[3].bytes[..100]);
}

#[test]
fn each_touched_unit_is_recorded_wherever_the_bytes_come_from() {
    let (snapshot, files) = snapshot();
    let (file, index) = (&files[4], snapshot.index.clone());
    let extents = |range| match index.data(file.inode).unwrap() {
        FileData::Extents(extents) => extents.within(range).map(Result::unwrap).collect::<Vec<_>>(),
        _ => panic!("the file is not large"),
    };
    // The expected units, by group, of reads of these ranges.
    let expected = |ranges: &[std::ops::Range<u64>]| {
        let mut units: BTreeMap<GroupIdx, UnitSet> = BTreeMap::new();
        for range in ranges {
            for at in range.clone().step_by(4096).chain([range.end - 1]) {
                let extent = extents(at..at + 1)[0];
                let offset = extent.group_offset + u32::try_from(at - extent.file_offset).unwrap();
                let known = units.entry(extent.group).or_default();
                *known = known.with(UnitSet::of(offset..offset + 1));
            }
        }
        units
    };
    // Of one group, of another unit of it, across groups, and a single byte.
    let ranges = [100_000..100_010, 0..10, 300_000..1_600_000, 2 * MIB..2 * MIB + 1];
    for is_cached in [false, true] {
        let tracker = Arc::new(Tracker::new(index.group_count()));
        let mounted = Mounted::observed(&snapshot, Some(Arc::clone(&tracker)));
        let mut buf = vec![0; file.bytes.len()];
        if is_cached {
            let unobserved = SnapshotContent::new(
                index.clone(),
                Some(Cache::open(mounted.cache.path(), CacheOptions::default()).unwrap()),
                mounted.fetcher.clone(),
                ContentOptions::default(),
                mounted.runtime.handle().clone(),
            );
            let all = u32::try_from(file.bytes.len()).unwrap();
            mounted.runtime.block_on(unobserved.read(file.inode, 0, all)).unwrap();
        }
        for range in &ranges {
            let len = usize::try_from(range.end - range.start).unwrap();
            let now = mounted.content.read_now(file.inode, range.start, &mut buf[..len]).unwrap();
            if is_cached {
                assert!(matches!(now, Now::Filled(filled) if filled == len));
            } else if matches!(now, Now::WouldWait) {
                mounted.read(file.inode, range.start, u32::try_from(len).unwrap()).unwrap();
            }
        }
        let run = tracker.finish(&index, None).unwrap();
        let found = run.touches().iter().map(|touch| (touch.group, touch.units)).collect();
        assert_eq!(expected(&ranges), found, "cached: {is_cached}");
    }
}

/// Path of the store's only blob.
fn blob_file(store: &Path) -> std::path::PathBuf {
    let mut path = store.join("blobs");
    for _ in 0..2 {
        let mut entries = std::fs::read_dir(&path).unwrap();
        path = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none());
    }
    path
}

#[test]
fn reading_anything_but_a_file_fails() {
    let (snapshot, _) = snapshot();
    let mounted = Mounted::new(&snapshot);
    assert!(mounted.read(InodeIdx::ROOT, 0, 10).is_err());
    assert!(mounted.read(InodeIdx(u32::MAX), 0, 10).is_err());
}

#[test]
fn a_damaged_cache_is_fetched_again() {
    let (snapshot, files) = snapshot();
    let mounted = Mounted::new(&snapshot);
    let file = &files[4];
    let len = u32::try_from(file.bytes.len()).unwrap();
    assert_eq!(mounted.read(file.inode, 0, len).unwrap(), file.bytes);
    // Truncate the files while they are open.
    let cut = |dir: &Path| {
        for dir in std::fs::read_dir(dir.join("groups")).unwrap() {
            for group in std::fs::read_dir(dir.unwrap().path()).unwrap() {
                let path = group.unwrap().path();
                std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(10).unwrap();
            }
        }
    };
    cut(mounted.cache.path());
    assert_eq!(mounted.read(file.inode, 0, len).unwrap(), file.bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_range_of_any_file_is_right(
        reads in proptest::collection::vec((0usize..6, 0..4 * MIB, 0u32..2_000_000), 1..30),
    ) {
        let (snapshot, files) = snapshot();
        let mounted = Mounted::new(&snapshot);
        for (place, offset, len) in reads {
            let file = &files[place];
            let want = expected(file, offset, len);
            let mut buf = vec![9; len as usize];
            if let Now::Filled(filled) = mounted.content.read_now(file.inode, offset, &mut buf).unwrap() {
                prop_assert!(buf[..filled] == *want);
            }
            prop_assert!(mounted.read(file.inode, offset, len).unwrap() == want);
        }
    }
}
