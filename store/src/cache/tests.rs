//! Tests of the cache against a model, against damage, and against a full disk.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::{Budget, Cache, CacheOptions, DiskState, Insert, Lookup, Marks};
use crate::ids::{Digest, GroupDigest};
use crate::units::ByteSize;

fn digest(name: u32) -> GroupDigest {
    GroupDigest(Digest::of(&name.to_le_bytes()))
}

/// Bytes that depend on the name alone, so that a reader can tell which group they belong to.
fn bytes(name: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&name.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn open(dir: &Path) -> Cache {
    Cache::open(dir, CacheOptions::default()).unwrap()
}

fn file_of(dir: &Path, name: u32) -> PathBuf {
    let hex = digest(name).to_string();
    dir.join("groups").join(&hex[..2]).join(&hex)
}

fn stored(cache: &Cache, name: u32, len: usize) -> Vec<u8> {
    let decoded = bytes(name, len);
    assert!(matches!(cache.insert(&digest(name), &decoded), Insert::Stored));
    decoded
}

fn staged_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("staging")).unwrap().count()
}

#[test]
fn cached_groups_are_readable_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let decoded = stored(&cache, 1, 10_000);
    for cache in [cache.clone(), {
        drop(cache);
        open(dir.path())
    }] {
        let mut part = vec![0; 100];
        assert_eq!(cache.read(&digest(1), 5000, &mut part), Lookup::Hit);
        assert_eq!(part, decoded[5000..5100]);
        assert_eq!(cache.read_all(&digest(1)).unwrap(), decoded);
        assert_eq!(cache.read(&digest(1), 9_901, &mut part), Lookup::Miss);
        assert_eq!(cache.read(&digest(1), u32::MAX, &mut part), Lookup::Miss);
        assert_eq!(cache.read(&digest(2), 0, &mut part), Lookup::Miss);
        assert!(matches!(cache.insert(&digest(1), &decoded), Insert::AlreadyThere));
    }
    assert_eq!(staged_files(dir.path()), 0);
}

/// Damages an intact file while the cache is closed.
#[test]
fn a_file_that_does_not_prove_itself_is_removed() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 9] = [
        ("empty", |path| fs::write(path, b"").unwrap()),
        ("cut in the data", |path| set_len(path, |_| 4096)),
        ("cut in the trailer", |path| set_len(path, |len| len - 1)),
        ("longer", |path| set_len(path, |len| len + 1)),
        ("zeros", |path| {
            let len = fs::metadata(path).unwrap().len();
            fs::write(path, vec![0; usize::try_from(len).unwrap()]).unwrap();
        }),
        ("zeros at the end", |path| {
            let len = fs::metadata(path).unwrap().len();
            set_len(path, |_| 4096);
            set_len(path, |_| len);
        }),
        ("another file", |path| {
            fs::copy(path.with_file_name("other"), path).unwrap();
        }),
        ("another file's trailer", |path| {
            let other = fs::read(path.with_file_name("other")).unwrap();
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&other[10_000..], 10_000).unwrap();
        }),
        ("garbage", |path| fs::write(path, bytes(77, 10_080)).unwrap()),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        stored(&cache, 1, 10_000);
        stored(&cache, 2, 10_000);
        drop(cache);
        let path = file_of(dir.path(), 1);
        fs::rename(file_of(dir.path(), 2), path.with_file_name("other")).unwrap();
        damage(&path);
        let cache = open(dir.path());
        let mut buf = vec![0; 10];
        assert_eq!(cache.read(&digest(1), 0, &mut buf), Lookup::Miss, "{name}");
        assert!(!path.exists(), "{name}");
        assert_eq!(cache.stats().verify_failures, 1, "{name}");
        let decoded = stored(&cache, 1, 10_000);
        assert_eq!(cache.read_all(&digest(1)).unwrap(), decoded, "{name}");
    }
}

fn set_len(path: &Path, len: impl Fn(u64) -> u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len(file.metadata().unwrap().len())).unwrap();
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    stored(&cache, 1, 60);
    drop(cache);
    let path = file_of(dir.path(), 1);
    let good = fs::read(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, bad).unwrap();
        assert!(open(dir.path()).read_all(&digest(1)).is_none(), "bit {bit}");
    }
}

#[test]
fn a_proved_file_that_is_cut_short_is_a_miss_and_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let decoded = stored(&cache, 1, 100_000);
    assert_eq!(cache.read_all(&digest(1)).unwrap(), decoded);
    set_len(&file_of(dir.path(), 1), |_| 50_000);
    let mut buf = vec![0; 4096];
    assert_eq!(cache.read(&digest(1), 60_000, &mut buf), Lookup::Miss);
    assert_eq!(cache.stats().read_failures, 1);
    let decoded = stored(&cache, 1, 100_000);
    assert_eq!(cache.read_all(&digest(1)).unwrap(), decoded);
}

#[test]
fn a_closed_file_proves_itself_again_only_if_it_changed() {
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions { open_files: 16, ..CacheOptions::default() };
    let cache = Cache::open(dir.path(), options).unwrap();
    for name in 0..200 {
        stored(&cache, name, 5000);
    }
    for name in 0..200 {
        assert_eq!(cache.read_all(&digest(name)).unwrap(), bytes(name, 5000));
    }
    assert_eq!(cache.stats().verified, 0);
    for name in 0..100 {
        fs::write(file_of(dir.path(), name), bytes(name + 1, 5080)).unwrap();
    }
    let wrong = (0..200)
        .filter_map(|name| Some((name, cache.read_all(&digest(name))?)))
        .filter(|(name, decoded)| *decoded != bytes(*name, 5000))
        .count();
    // Sixteen files may still be open, and open files are not verified again.
    assert!(wrong <= 16, "{wrong}");
}

#[test]
fn the_budget_is_shared_and_never_exceeded() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Some(Budget::Bytes(ByteSize(100 << 10)));
    // Evict nothing before the budget is exhausted.
    let marks = Marks { high: 1000, low: 1000 };
    let options = CacheOptions { budget, marks, ..CacheOptions::default() };
    let caches = [(); 2].map(|()| Cache::open(dir.path(), options).unwrap());
    std::thread::scope(|scope| {
        for (place, cache) in (0u32..).zip(&caches) {
            scope.spawn(move || {
                for name in 0..40 {
                    cache.insert(&digest(place * 20 + name), &bytes(name, 5000));
                }
            });
        }
    });
    let measured: u64 = (0..60)
        .filter_map(|name| fs::metadata(file_of(dir.path(), name)).ok())
        .map(|meta| meta.len().div_ceil(4096) * 4096)
        .sum();
    // Twelve files of two blocks are 96 KiB; a thirteenth would exceed the budget.
    assert_eq!(measured, 96 << 10);
    assert!(matches!(caches[0].insert(&digest(99), &bytes(1, 5000)), Insert::Full));
    assert_eq!(caches[0].stats().disk_bytes, measured);
    drop(caches);
    let cache = Cache::open(dir.path(), options).unwrap();
    assert_eq!(cache.stats().disk_bytes, measured);
}

#[test]
fn a_cache_that_only_short_lived_owners_use_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let budget = Some(Budget::Bytes(ByteSize(100 << 10)));
    let options = CacheOptions { budget, ..CacheOptions::default() };
    for name in 0..60 {
        let cache = Cache::open(dir.path(), options).unwrap();
        let insert = cache.insert(&digest(name), &bytes(name, 5000));
        assert!(matches!(insert, Insert::Stored), "{name}: {insert:?}");
    }
    let cache = Cache::open(dir.path(), options).unwrap();
    assert!(cache.stats().disk_bytes <= 90 << 10);
}

#[test]
fn leftovers_of_dead_processes_are_removed_and_usage_is_recounted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    stored(&cache, 1, 5000);
    let alive = staged_files(dir.path());
    drop(cache);
    let left = dir.path().join("staging/17-dead");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lock"), b"").unwrap();
    fs::write(left.join("0"), b"half").unwrap();
    fs::create_dir(dir.path().join("staging/18-unborn")).unwrap();
    let usage = OpenOptions::new().write(true).open(dir.path().join("usage")).unwrap();
    usage.write_all_at(&(1u64 << 40).to_le_bytes(), 48).unwrap();
    let cache = open(dir.path());
    assert_eq!(staged_files(dir.path()), alive);
    assert_eq!(cache.stats().disk_bytes, 8192);
    // A second owner removes nothing of the first, which is alive.
    let second = open(dir.path());
    assert_eq!(staged_files(dir.path()), 2);
    stored(&cache, 2, 10);
    stored(&second, 3, 10);
}

#[test]
fn writers_of_one_group_count_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let caches = [(); 4].map(|()| open(dir.path()));
    for name in 0..50 {
        let decoded = bytes(name, 5000);
        std::thread::scope(|scope| {
            for cache in &caches {
                let decoded = &decoded;
                scope.spawn(move || {
                    let insert = cache.insert(&digest(name), decoded);
                    assert!(matches!(insert, Insert::Stored | Insert::AlreadyThere), "{insert:?}");
                    assert_eq!(cache.read_all(&digest(name)).as_ref(), Some(decoded));
                });
            }
        });
    }
    let inserted: u64 = caches.iter().map(|cache| cache.stats().inserted_groups).sum();
    assert_eq!(inserted, 50);
    drop(caches);
    assert_eq!(open(dir.path()).stats().disk_bytes, 50 * 8192);
}

/// A small filesystem of its own, unmounted on drop.
struct Tmpfs {
    dir: tempfile::TempDir,
}

impl Tmpfs {
    /// Returns `None` if this process may not mount.
    fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, data.as_c_str()) {
            Ok(()) => Some(Self { dir }),
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => None,
            Err(error) => panic!("mounting a tmpfs: {error}"),
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_stops_storing_and_nothing_else() {
    let Some(disk) = Tmpfs::new(1 << 20) else { return };
    let dir = disk.dir.path().join("cache");
    let pause_after_failure = Duration::MAX;
    let budget = Some(Budget::Bytes(ByteSize(1 << 30)));
    let options = CacheOptions { budget, pause_after_failure, ..CacheOptions::default() };
    let cache = Cache::open(&dir, options).unwrap();
    let inserts: Vec<Insert> =
        (0..40).map(|name| cache.insert(&digest(name), &bytes(name, 50_000))).collect();
    let stored = inserts.iter().take_while(|insert| matches!(insert, Insert::Stored)).count();
    assert!(stored > 10, "{stored}");
    assert!(matches!(inserts[stored], Insert::Failed(_)), "{:?}", inserts[stored]);
    assert!(inserts[stored + 1..].iter().all(|insert| matches!(insert, Insert::Paused)));
    cache.settle();
    assert_eq!(cache.stats().disk, DiskState::Failing);
    // About a tenth was evicted to make room.
    let there = (0..40).filter(|name| {
        let decoded = cache.read_all(&digest(*name));
        decoded.is_some_and(|decoded| decoded == bytes(*name, 50_000))
    });
    let there = there.count();
    assert!((stored / 2..stored).contains(&there), "{there} of {stored}");
    drop(cache);
    // After the pause, and with free space, the cache stores again.
    let options = CacheOptions { pause_after_failure: Duration::ZERO, ..options };
    let cache = Cache::open(&dir, options).unwrap();
    let filler = fs::File::create(disk.dir.path().join("filler")).unwrap();
    while (&filler).write_all(&[1; 1024]).is_ok() {}
    assert!(matches!(cache.insert(&digest(90), &bytes(90, 50_000)), Insert::Failed(_)));
    filler.set_len(0).unwrap();
    assert!(matches!(cache.insert(&digest(90), &bytes(90, 50_000)), Insert::Stored));
    assert_eq!(cache.read_all(&digest(90)), Some(bytes(90, 50_000)));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32),
    Read(u32, u32, usize),
    Reopen,
    Damage(u32, u32),
    Remove(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0u32..8;
    let step = prop_oneof![
        3 => name.clone().prop_map(Step::Insert),
        6 => (name.clone(), 0u32..9000, 0usize..5000).prop_map(|(n, o, l)| Step::Read(n, o, l)),
        1 => Just(Step::Reopen),
        1 => (name.clone(), any::<u32>()).prop_map(|(n, b)| Step::Damage(n, b)),
        1 => name.prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 1..60)
}

fn len_of(name: u32) -> usize {
    1 + name as usize * 1200
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The model knows which groups must be cached; damage happens while the cache is closed.
    #[test]
    fn the_cache_behaves_like_a_map_that_may_lose_damaged_entries(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path());
        let mut model: HashMap<u32, Vec<u8>> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert(name) => {
                    let decoded = bytes(name, len_of(name));
                    // A damaged file is detected when it is read, not before.
                    cache.read_all(&digest(name));
                    let insert = cache.insert(&digest(name), &decoded);
                    let before = model.insert(name, decoded).is_some();
                    prop_assert_eq!(before, matches!(insert, Insert::AlreadyThere));
                }
                Step::Read(name, offset, len) => {
                    let mut buf = vec![0; len];
                    let lookup = cache.read(&digest(name), offset, &mut buf);
                    let start = offset as usize;
                    let expected = model.get(&name).and_then(|all| all.get(start..start + len));
                    prop_assert_eq!(lookup == Lookup::Hit, expected.is_some());
                    if let Some(expected) = expected {
                        prop_assert_eq!(&buf[..], expected);
                    }
                }
                Step::Reopen => {
                    drop(cache);
                    cache = open(dir.path());
                }
                Step::Damage(name, bit) => {
                    drop(cache);
                    let path = file_of(dir.path(), name);
                    if let Ok(mut file) = fs::read(&path) {
                        let bit = bit as usize % (file.len() * 8);
                        file[bit / 8] ^= 1 << (bit % 8);
                        fs::write(&path, file).unwrap();
                        model.remove(&name);
                    }
                    cache = open(dir.path());
                }
                Step::Remove(name) => {
                    drop(cache);
                    let _ = fs::remove_file(file_of(dir.path(), name));
                    model.remove(&name);
                    cache = open(dir.path());
                }
            }
        }
        for name in 0..8 {
            prop_assert_eq!(cache.read_all(&digest(name)), model.get(&name).cloned());
        }
    }
}

/// The state after a crash that happened before anything was counted.
fn forget_the_count(dir: &Path) {
    fs::write(dir.join("usage"), "").unwrap();
}

#[test]
fn a_cache_that_cannot_be_measured_is_not_taken_for_empty() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let decoded = stored(&cache, 1, 10_000);
    let taken = cache.stats().disk_bytes;
    drop(cache);
    forget_the_count(dir.path());
    // A directory that cannot be listed.
    let link = dir.path().join("groups/zz");
    std::os::unix::fs::symlink("zz", &link).unwrap();
    for _ in 0..2 {
        // The second time, the usage file is of the current boot.
        let cache = open(dir.path());
        assert!(matches!(cache.insert(&digest(2), &bytes(2, 5000)), Insert::Full));
        cache.settle();
        assert_eq!(cache.read_all(&digest(1)).unwrap(), decoded, "something was evicted");
        assert!(cache.stats().disk_bytes >= taken);
    }
    fs::remove_file(link).unwrap();
    let cache = open(dir.path());
    assert!(matches!(cache.insert(&digest(2), &bytes(2, 5000)), Insert::Full));
    cache.settle();
    stored(&cache, 2, 5000);
    assert_eq!(cache.read_all(&digest(1)).unwrap(), decoded, "something was evicted");
    assert!((taken..taken + 20_000).contains(&cache.stats().disk_bytes));
}

#[test]
fn a_file_that_does_not_belong_there_does_not_keep_the_cache_from_being_measured() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    stored(&cache, 1, 10_000);
    let taken = cache.stats().disk_bytes;
    drop(cache);
    forget_the_count(dir.path());
    fs::write(dir.path().join("groups/stray"), "").unwrap();
    assert_eq!(open(dir.path()).stats().disk_bytes, taken);
}
