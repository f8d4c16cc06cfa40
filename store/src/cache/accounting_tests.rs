//! Tests of the space accounting and of the worker thread: panics, concurrent processes, failed
//! reads.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::content_tests::File;
use super::disk::{Disk, SystemDisk};
use super::fault_disk::FaultyDisk;
use super::{Budget, Cache, CacheOptions, Insert, PinSet, Spare};
use crate::ids::{Digest, GroupDigest, IndexDigest, Kind, SnapshotId};
use crate::units::ByteSize;

/// Longer than any step takes, and shorter than the test runner's patience.
const LIMIT: Duration = Duration::from_mins(1);

/// A disk that panics at the next sync, once.
#[derive(Debug, Default)]
struct PanickingDisk {
    armed: AtomicBool,
}

impl Disk for PanickingDisk {
    fn sync(&self, file: &fs::File) -> std::io::Result<()> {
        assert!(!self.armed.swap(false, Ordering::SeqCst), "the armed disk panics");
        SystemDisk.sync(file)
    }
}

/// A disk whose writes of a whole group wait until the gate opens.
#[derive(Debug, Default)]
struct GatedDisk {
    /// Whether a write waits, and whether the gate is closed.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl GatedDisk {
    fn set_closed(&self, closed: bool) {
        self.state.lock().1 = closed;
        self.changed.notify_all();
    }

    fn wait_for_a_write(&self) {
        let mut state = self.state.lock();
        while !state.0 {
            assert!(!self.changed.wait_for(&mut state, LIMIT).timed_out());
        }
    }
}

impl Disk for GatedDisk {
    fn write(&self, file: &fs::File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let mut state = self.state.lock();
        // Not the updates of the shared count, which are made under its lock.
        while state.1 && bytes.len() > 1000 {
            state.0 = true;
            self.changed.notify_all();
            assert!(!self.changed.wait_for(&mut state, LIMIT).timed_out());
        }
        drop(state);
        SystemDisk.write(file, bytes, offset)
    }
}

fn open(dir: &Path) -> Cache {
    Cache::open(dir, CacheOptions::default()).unwrap()
}

/// Checks that the count matches the files.
fn assert_counted(cache: &Cache) {
    assert_eq!(cache.stats().disk_bytes, cache.inventory().unwrap().bytes());
}

/// Runs `work` on another thread. Panics if it does not return in time.
fn within_limit(work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    wait.recv_timeout(LIMIT).expect("it blocks");
    thread.join().unwrap();
}

#[test]
fn a_job_that_panics_ends_neither_the_thread_nor_waiting_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(PanickingDisk::default());
    let cache = Cache::on_disk(dir.path(), CacheOptions::default(), disk.clone()).unwrap();
    disk.armed.store(true, Ordering::SeqCst);
    let files = [File::new(1, 200_000, 100_000), File::new(2, 200_000, 100_000)];
    for file in files {
        (0..file.groups()).for_each(|place| drop(file.insert(&cache, place)));
        let waiting = cache.clone();
        within_limit(move || waiting.settle());
        // The first seal panics, the second does its work.
        let whole = cache.whole(&file.id.digest, file.id.size);
        assert_eq!(whole.is_some(), file.id.digest == Digest::of(&File::new(2, 200_000, 1).bytes));
    }
    assert!(!disk.armed.load(Ordering::SeqCst));
}

#[test]
fn a_part_beside_a_whole_file_in_use_is_evicted_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::new(1, 300_000, 100_000);
    let cache = open(dir.path());
    file.make_whole(&cache);
    drop(cache);
    // Left by a process that died after another one had sealed the file.
    let (part, sealed) = (file.path(dir.path(), ".part"), file.path(dir.path(), ""));
    fs::write(&part, &file.bytes).unwrap();
    fs::remove_file(dir.path().join("usage")).unwrap();
    let (user, cache) = (open(dir.path()), open(dir.path()));
    let guard = user.whole(&file.id.digest, file.id.size).unwrap();
    // Retries, because a process just forked by another test may briefly hold a file.
    for _ in 0..1000 {
        cache.prune(0, Spare::Nothing).unwrap();
        if !part.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!part.exists());
    assert!(sealed.exists(), "it is in use");
    assert_counted(&cache);
    drop(guard);
    drop(user);
    for _ in 0..1000 {
        cache.prune(0, Spare::Nothing).unwrap();
        if !sealed.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_counted(&cache);
    assert_eq!(cache.stats().disk_bytes, 0);
}

#[test]
fn the_replacement_of_an_unreadable_part_is_counted_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::new(1, 0));
    let cache = Cache::on_disk(dir.path(), CacheOptions::default(), disk.clone()).unwrap();
    let file = File::new(1, 300_000, 100_000);
    assert!(matches!(file.insert(&cache, 0), Insert::Stored));
    disk.per_mille.store(1000, Ordering::Relaxed);
    assert!(file.read(&cache, 0).is_none());
    disk.per_mille.store(0, Ordering::Relaxed);
    assert!(matches!(file.insert(&cache, 1), Insert::Stored));
    assert_eq!(file.check(&cache), 1);
    assert_counted(&cache);
}

#[test]
fn a_part_that_found_no_room_at_first_is_counted_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let budget = 1 << 20;
    let options =
        CacheOptions { budget: Some(Budget::Bytes(ByteSize(budget))), ..CacheOptions::default() };
    let cache = Cache::open(dir.path(), options).unwrap();
    let file = File::new(1, 20_000, 10_000);
    let _held = cache.pin_content(&file.id.digest);
    let id = SnapshotId { kind: Kind::Image, index: IndexDigest(Digest::of(b"snapshot")) };
    let filler = GroupDigest(Digest::of(b"filler"));
    cache.pin(&id, &PinSet { groups: vec![filler], contents: Vec::new() }).unwrap();
    // With its trailer, it takes the whole budget.
    let decoded = vec![7; usize::try_from(budget).unwrap() - 1000];
    assert!(matches!(cache.insert(&filler, &decoded), Insert::Stored));
    cache.settle();
    assert!(matches!(file.insert(&cache, 0), Insert::Full));
    cache.settle();
    assert_counted(&cache);
    cache.unpin(&id).unwrap();
    for _ in 0..1000 {
        cache.prune(0, Spare::Nothing).unwrap();
        if !cache.contains(&filler) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(matches!(file.insert(&cache, 0), Insert::Stored));
    cache.settle();
    assert_counted(&cache);
}

#[test]
fn a_recount_keeps_the_reservations_of_other_processes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(GatedDisk::default());
    let writer = Cache::on_disk(dir.path(), CacheOptions::default(), disk.clone()).unwrap();
    let other = open(dir.path());
    disk.set_closed(true);
    let (group, decoded) = (GroupDigest(Digest::of(b"group")), vec![7; 20_000]);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.insert(&group, &decoded));
        disk.wait_for_a_write();
        other.recount_now();
        let counted = other.stats().disk_bytes;
        disk.set_closed(false);
        assert!(matches!(writing.join().unwrap(), Insert::Stored));
        assert_eq!(counted, 20_480);
    });
    other.recount_now();
    assert_counted(&other);
    assert_eq!(other.stats().disk_bytes, 20_480);
    // What a process that died had reserved does not stay counted.
    let dead = dir.path().join("staging/dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("lock"), 4096u64.to_le_bytes()).unwrap();
    other.recount_now();
    assert_eq!(other.stats().disk_bytes, 20_480);
}
