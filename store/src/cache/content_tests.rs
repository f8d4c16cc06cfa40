//! Tests of content files: filling, sealing, sharing, false claims of snapshots, and concurrent
//! processes.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{
    Budget, Cache, CacheOptions, ContentId, Insert, Lookup, Piece, PinSet, Placement, Spare,
};
use crate::ids::{Digest, GroupDigest, IndexDigest, Kind, SnapshotId};
use crate::units::ByteSize;

/// A large file, cut into groups of `cut` bytes.
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) id: ContentId,
    cut: usize,
}

impl File {
    pub(super) fn new(name: u32, len: usize, cut: usize) -> Self {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&name.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let id = ContentId { digest: Digest::of(&bytes), size: len as u64 };
        Self { bytes, id, cut }
    }

    pub(super) fn groups(&self) -> usize {
        self.bytes.len().div_ceil(self.cut)
    }

    pub(super) fn raw(&self, place: usize) -> &[u8] {
        let start = place * self.cut;
        &self.bytes[start..(start + self.cut).min(self.bytes.len())]
    }

    pub(super) fn group(&self, place: usize) -> GroupDigest {
        GroupDigest(Digest::of(&[self.raw(place), b"stored"].concat()))
    }

    fn piece(&self, place: usize) -> Piece {
        Piece {
            file_offset: (place * self.cut) as u64,
            group_offset: 0,
            len: u32::try_from(self.raw(place).len()).unwrap(),
        }
    }

    fn placement(&self, place: usize) -> Placement {
        Placement::new(self.id, &[self.piece(place)]).unwrap()
    }

    pub(super) fn insert(&self, cache: &Cache, place: usize) -> Insert {
        cache.insert_placed(&self.group(place), Some(&self.placement(place)), self.raw(place))
    }

    fn fill(&self, cache: &Cache) {
        for place in 0..self.groups() {
            assert!(matches!(self.insert(cache, place), Insert::Stored | Insert::AlreadyThere));
        }
    }

    /// Fills the content until it is whole. Retries, because a process just forked by another test
    /// may briefly hold a lock.
    pub(super) fn make_whole(&self, cache: &Cache) {
        for _ in 0..1000 {
            self.fill(cache);
            cache.settle();
            if cache.whole(&self.id.digest, self.id.size).is_some() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let content = cache.inner.contents.get(&self.id);
        let ends = ["", ".seal", ".ready", ".part"].map(|end| self.path(&cache.inner.dir, end));
        let files = ends.map(|path| fs::symlink_metadata(path).map(|meta| meta.len()).ok());
        let state = content.state.read();
        panic!("it does not become whole: {state:?}; sealed, seal, ready, part: {files:?}");
    }

    pub(super) fn read(&self, cache: &Cache, place: usize) -> Option<Vec<u8>> {
        let mut buf = vec![0; self.raw(place).len()];
        let lookup =
            cache.read_piece(&self.id, &self.group(place), &self.piece(place), 0, &mut buf);
        (lookup == Lookup::Hit).then_some(buf)
    }

    /// Reads each group, which must be correct or absent, and returns the number of groups present.
    pub(super) fn check(&self, cache: &Cache) -> usize {
        let right = |place| self.read(cache, place).map(|bytes| assert!(bytes == self.raw(place)));
        (0..self.groups()).filter_map(right).count()
    }

    pub(super) fn path(&self, dir: &Path, end: &str) -> PathBuf {
        let hex = self.id.digest.to_hex();
        dir.join("contents").join(&hex[..2]).join(format!("{hex}-{}{end}", self.id.size))
    }
}

fn open(dir: &Path) -> Cache {
    Cache::open(dir, CacheOptions::default()).unwrap()
}

/// Prunes. Retries, because a process just forked by another test may briefly hold a file.
fn prune(cache: &Cache, target: u64, spare: Spare) {
    for _ in 0..1000 {
        cache.prune(target, spare).unwrap();
        if cache.stats().disk_bytes <= target {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{} bytes stay", cache.stats().disk_bytes);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for sub in fs::read_dir(dir.join("contents")).unwrap() {
        for file in fs::read_dir(sub.unwrap().path()).unwrap() {
            names.push(file.unwrap().file_name().into_string().unwrap());
        }
    }
    names
}

#[test]
fn a_file_becomes_whole_and_is_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let file = File::new(1, 1_000_003, 100_000);
    for place in [3, 0, 10, 7] {
        assert!(matches!(file.insert(&cache, place), Insert::Stored));
        assert!(matches!(file.insert(&cache, place), Insert::AlreadyThere));
    }
    assert_eq!(file.check(&cache), 4);
    assert!(cache.whole(&file.id.digest, file.id.size).is_none());
    let part = fs::metadata(file.path(dir.path(), ".part")).unwrap();
    assert_eq!(part.len(), file.id.size);
    assert!(part.blocks() * 512 < 400_000, "it is sparse");
    file.fill(&cache);
    cache.settle();
    assert_eq!(fs::read_dir(dir.path().join("groups")).unwrap().count(), 0);
    for cache in [cache.clone(), {
        drop(cache);
        open(dir.path())
    }] {
        let whole = cache.whole(&file.id.digest, file.id.size).unwrap();
        assert_eq!(fs::read(file.path(dir.path(), "")).unwrap(), file.bytes);
        let mut buf = vec![0; 70];
        whole.file().read_exact_at(&mut buf, 999_000).unwrap();
        assert_eq!(buf, file.bytes[999_000..999_070]);
        assert_eq!(cache.read_whole(&file.id, 5, &mut buf), Lookup::Hit);
        assert_eq!(buf, file.bytes[5..75]);
        assert_eq!(cache.read_whole(&file.id, file.id.size - 69, &mut buf), Lookup::Miss);
        assert_eq!(file.check(&cache), file.groups());
        assert!(matches!(file.insert(&cache, 2), Insert::AlreadyThere));
        assert!(cache.whole(&file.id.digest, file.id.size + 1).is_none());
    }
    assert_eq!(names(dir.path()).len(), 2, "{:?}", names(dir.path()));
    assert_eq!(open(dir.path()).stats().disk_bytes, 1_003_520 + 4096);
}

#[test]
fn a_part_is_there_after_a_restart_and_proves_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::new(1, 500_000, 100_000);
    let cache = open(dir.path());
    for place in 0..4 {
        file.insert(&cache, place);
    }
    let taken = cache.stats().disk_bytes;
    drop(cache);
    let part = fs::OpenOptions::new().write(true).open(file.path(dir.path(), ".part")).unwrap();
    part.write_all_at(b"damage", 150_000).unwrap();
    let cache = open(dir.path());
    assert_eq!(cache.stats().disk_bytes, taken);
    assert_eq!(file.check(&cache), 3);
    assert_eq!(cache.stats().verify_failures, 1);
    file.make_whole(&cache);
    assert_eq!(file.check(&cache), 5);
}

#[test]
fn a_complete_part_of_a_process_that_died_is_sealed_when_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::new(1, 300_000, 100_000);
    let cache = open(dir.path());
    file.insert(&cache, 0);
    file.insert(&cache, 1);
    let keep = [".part", ".ready"].map(|end| fs::read(file.path(dir.path(), end)).unwrap());
    drop((cache, keep));
    let cache = open(dir.path());
    file.insert(&cache, 2);
    cache.settle();
    // Simulates a crash between the rename and the seal.
    drop(cache);
    fs::remove_file(file.path(dir.path(), ".seal")).unwrap();
    let cache = open(dir.path());
    assert!(cache.whole(&file.id.digest, file.id.size).is_none());
    cache.settle();
    assert!(cache.whole(&file.id.digest, file.id.size).is_some());
    drop(cache);
    // Simulates a crash before the rename.
    fs::rename(file.path(dir.path(), ""), file.path(dir.path(), ".part")).unwrap();
    let cache = open(dir.path());
    file.make_whole(&cache);
}

#[test]
fn a_sealed_file_that_was_changed_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::new(1, 300_000, 100_000);
    let cache = open(dir.path());
    file.fill(&cache);
    cache.settle();
    drop(cache);
    let path = file.path(dir.path(), "");
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 7).unwrap();
    let cache = open(dir.path());
    assert_eq!(file.check(&cache), 0);
    cache.settle();
    assert!(!path.exists());
    assert_eq!(cache.stats().verify_failures, 1);
    file.make_whole(&cache);
}

#[test]
fn equal_contents_in_other_groups_share_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let one = File::new(1, 600_000, 100_000);
    let two = File::new(1, 600_000, 70_000);
    for place in 0..3 {
        one.insert(&cache, place);
    }
    // Its groups are different, so no range is trusted; but each turns out to agree.
    assert_eq!(two.check(&cache), 0);
    two.fill(&cache);
    assert_eq!(cache.stats().contradictions, 0);
    cache.settle();
    assert!(cache.whole(&one.id.digest, one.id.size).is_some());
    assert_eq!((one.check(&cache), two.check(&cache)), (one.groups(), two.groups()));
    assert!(cache.stats().disk_bytes < 620_000);
}

#[test]
fn a_lying_snapshot_does_not_affect_other_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let honest = File::new(1, 600_000, 100_000);
    // Claims to have the same content.
    let liar = File { id: honest.id, ..File::new(2, 600_000, 100_000) };
    liar.insert(&cache, 0);
    liar.insert(&cache, 1);
    for place in 0..5 {
        honest.insert(&cache, place);
    }
    assert_eq!(cache.stats().contradictions, 2);
    assert_eq!((honest.check(&cache), liar.check(&cache)), (5, 2));
    honest.fill(&cache);
    cache.settle();
    assert!(cache.whole(&honest.id.digest, honest.id.size).is_none());
    assert_eq!((honest.check(&cache), liar.check(&cache)), (2, 0));
    honest.fill(&cache);
    liar.fill(&cache);
    cache.settle();
    assert_eq!((honest.check(&cache), liar.check(&cache)), (6, 6));
}

#[test]
fn a_second_process_reads_along_and_does_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let caches = [open(dir.path()), open(dir.path())];
    let file = File::new(1, 600_000, 100_000);
    file.insert(&caches[0], 0);
    assert_eq!(file.check(&caches[1]), 1);
    file.insert(&caches[0], 1);
    assert_eq!(file.check(&caches[1]), 2);
    // The second process keeps the groups that it fetches in group files.
    assert!(matches!(file.insert(&caches[1], 2), Insert::Stored));
    assert_eq!(fs::read_dir(dir.path().join("groups")).unwrap().count(), 1);
    assert_eq!((file.check(&caches[0]), file.check(&caches[1])), (3, 3));
    caches[0].settle();
    file.fill(&caches[0]);
    caches[0].settle();
    assert!(caches.iter().all(|cache| cache.whole(&file.id.digest, file.id.size).is_some()));
}

#[test]
fn bytes_of_shared_groups_come_into_the_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let file = File::new(1, 600_000, 100_000);
    for place in 0..file.groups() {
        if place % 2 == 0 {
            cache.insert(&file.group(place), file.raw(place));
        } else {
            file.insert(&cache, place);
        }
    }
    assert!(cache.whole(&file.id.digest, file.id.size).is_none());
    assert_eq!(file.check(&cache), 6);
    cache.settle();
    assert!(cache.whole(&file.id.digest, file.id.size).is_some());
}

fn small(budget: u64) -> CacheOptions {
    CacheOptions { budget: Some(Budget::Bytes(ByteSize(budget))), ..CacheOptions::default() }
}

#[test]
fn least_recently_used_contents_are_evicted_unless_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), small(10 << 20)).unwrap();
    let files: Vec<File> = (0..30).map(|name| File::new(name, 1 << 20, 256 << 10)).collect();
    let mut guards = Vec::new();
    for (place, file) in files.iter().enumerate() {
        for group in 0..file.groups() {
            while matches!(file.insert(&cache, group), Insert::Full) {
                cache.settle();
            }
        }
        cache.settle();
        if place == 2 {
            guards.push(cache.whole(&file.id.digest, file.id.size).unwrap());
        }
        assert!(cache.stats().disk_bytes <= 10 << 20);
        assert_eq!(cache.inventory().unwrap().content_bytes, cache.stats().disk_bytes);
    }
    let there: Vec<usize> =
        (0..30).filter(|place| cache.whole(&files[*place].id.digest, 1 << 20).is_some()).collect();
    assert!(there.contains(&2) && there.contains(&29), "{there:?}");
    assert!(!there.contains(&0) && (7..=9).contains(&there.len()), "{there:?}");
    // Another process, e.g. `inlay cache prune`, sees that the file is in use.
    let other = Cache::open(dir.path(), CacheOptions::default()).unwrap();
    assert_eq!(other.budget(), Budget::Bytes(ByteSize(10 << 20)));
    other.prune(0, Spare::Nothing).unwrap();
    let mut byte = [0];
    guards[0].file().read_exact_at(&mut byte, 77).unwrap();
    assert_eq!(byte[0], files[2].bytes[77]);
    assert!(files[2].path(dir.path(), "").exists());
    drop(guards);
    drop(cache);
    prune(&other, 0, Spare::Nothing);
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert_eq!(other.stats().disk_bytes, 0);
}

#[test]
fn pins_outlive_eviction_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), small(10 << 20)).unwrap();
    let pinned = File::new(1, 1 << 20, 256 << 10);
    pinned.fill(&cache);
    cache.insert(&GroupDigest(Digest::of(b"pinned")), &[7; 5000]);
    cache.insert(&GroupDigest(Digest::of(b"other")), &[8; 5000]);
    let id = SnapshotId { kind: Kind::Image, index: IndexDigest(Digest::of(b"snapshot")) };
    let needs =
        PinSet { groups: vec![GroupDigest(Digest::of(b"pinned"))], contents: vec![pinned.id] };
    cache.pin(&id, &needs).unwrap();
    cache.settle();
    drop(cache);
    let cache = open(dir.path());
    assert_eq!(cache.pins().unwrap(), [id]);
    prune(&cache, cache.inventory().unwrap().bytes() - 1, Spare::Pins);
    assert!(!cache.contains(&GroupDigest(Digest::of(b"other"))));
    let evicted = cache.prune(0, Spare::Pins).unwrap();
    assert_eq!((evicted.groups, evicted.contents, evicted.spared), (0, 0, 2));
    assert_eq!(pinned.check(&cache), 4);
    assert!(cache.read_all(&GroupDigest(Digest::of(b"pinned"))).is_some());
    assert!(cache.unpin(&id).unwrap() && !cache.unpin(&id).unwrap());
    let held = cache.pin_content(&pinned.id.digest);
    cache.prune(0, Spare::Nothing).unwrap();
    assert_eq!(pinned.check(&cache), 4);
    drop(held);
    prune(&cache, 0, Spare::Nothing);
    assert_eq!(pinned.check(&cache), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Insert(usize, usize),
    Group(usize, usize),
    Check(usize),
    Settle,
    Reopen,
    Prune(u64),
    Damage(usize, u32),
    Whole(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (file, place) = (0usize..3, 0usize..6);
    let step = prop_oneof![
        8 => (file.clone(), place.clone()).prop_map(|(f, p)| Step::Insert(f, p)),
        2 => (file.clone(), place).prop_map(|(f, p)| Step::Group(f, p)),
        4 => file.clone().prop_map(Step::Check),
        2 => Just(Step::Settle),
        1 => Just(Step::Reopen),
        1 => (0u64..400_000).prop_map(Step::Prune),
        1 => (file.clone(), any::<u32>()).prop_map(|(f, b)| Step::Damage(f, b)),
        2 => file.prop_map(Step::Whole),
    ];
    proptest::collection::vec(step, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Under any sequence of steps, reads are correct and the count matches the disk. Files 0 and 1
    /// have the same contents in different groups.
    #[test]
    fn no_byte_is_wrong_under_faults(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let files = [File::new(1, 100_000, 20_000), File::new(1, 100_000, 17_000), File::new(2, 60_001, 20_000)];
        let mut cache = open(dir.path());
        for step in steps {
            match step {
                Step::Insert(file, place) => {
                    let file = &files[file];
                    let insert = file.insert(&cache, place % file.groups());
                    prop_assert!(matches!(insert, Insert::Stored | Insert::AlreadyThere), "{:?}", insert);
                    prop_assert!(file.read(&cache, place % file.groups()).is_some());
                }
                Step::Group(file, place) => {
                    let file = &files[file];
                    let place = place % file.groups();
                    cache.insert(&file.group(place), file.raw(place));
                }
                Step::Check(file) => {
                    files[file].check(&cache);
                }
                Step::Settle => cache.settle(),
                Step::Reopen => {
                    drop(cache);
                    cache = open(dir.path());
                }
                Step::Prune(target) => {
                    // Wait for writes, because a file being written is in use.
                    cache.settle();
                    prune(&cache, target, Spare::Pins);
                }
                Step::Damage(file, bit) => {
                    drop(cache);
                    let ends = ["", ".seal", ".ready", ".part"];
                    let path = files[file].path(dir.path(), ends[bit as usize % 4]);
                    if let Ok(mut bytes) = fs::read(&path) && !bytes.is_empty() {
                        let bit = (bit / 4) as usize % (bytes.len() * 8);
                        bytes[bit / 8] ^= 1 << (bit % 8);
                        fs::write(&path, bytes).unwrap();
                    }
                    cache = open(dir.path());
                }
                Step::Whole(file) => {
                    if let Some(whole) = cache.whole(&files[file].id.digest, files[file].id.size) {
                        let mut all = vec![0; files[file].bytes.len()];
                        whole.file().read_exact_at(&mut all, 0).unwrap();
                        prop_assert!(all == files[file].bytes);
                        prop_assert_eq!(whole.file().metadata().unwrap().len(), files[file].id.size);
                    }
                }
            }
        }
        for file in &files {
            file.check(&cache);
            file.make_whole(&cache);
            prop_assert_eq!(file.check(&cache), file.groups());
        }
        prune(&cache, 0, Spare::Nothing);
        prop_assert_eq!(cache.inventory().unwrap().bytes(), 0);
        drop(cache);
        prop_assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    }
}
