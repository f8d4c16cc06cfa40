//! Tests on disks that fail and that lose power: no wrong bytes, no errors for readers, no leaks.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::content_tests::File;
use super::fault_disk::{Dice, FaultyDisk, LosingDisk};
use super::{Budget, Cache, CacheOptions, Insert, Lookup, Spare};
use crate::units::ByteSize;

const READERS: u64 = 8;
const GROUP: usize = 20_000;
const SEEDS_MAX: u64 = 60;

/// The files of eight snapshots; every second file is shared, some of them in different groups.
fn files() -> Vec<File> {
    (0..40).map(|name| File::new(name / 2, 60_000 + 4000 * name as usize / 2, GROUP)).collect()
}

fn options(budget: u64) -> CacheOptions {
    CacheOptions {
        budget: Some(Budget::Bytes(ByteSize(budget))),
        // Without this, hardly any operation would be attempted.
        pause_after_failure: Duration::ZERO,
        open_files: 16,
        ..CacheOptions::default()
    }
}

/// Reads like the content layer: from the cache, with a fallback to the store. Inserts the store's
/// bytes into the cache.
fn read(cache: &Cache, file: &File, place: usize, dice: &Dice) {
    let expected = file.raw(place);
    let got = file.read(cache, place).unwrap_or_else(|| {
        let insert = if dice.roll(4) == 0 {
            cache.insert(&file.group(place), expected)
        } else {
            file.insert(cache, place)
        };
        assert!(!matches!(insert, Insert::Failed(super::CacheError::Size(_))));
        expected.to_vec()
    });
    assert!(got == expected, "a wrong byte");
    if let Some(whole) = cache.whole(&file.id.digest, file.id.size) {
        let mut all = vec![0; file.bytes.len()];
        // Bypass the cache, as the kernel does in passthrough.
        std::os::unix::fs::FileExt::read_exact_at(&**whole.file(), &mut all, 0).unwrap();
        assert!(all == file.bytes, "a wrong byte in a whole file");
        let mut part = vec![0; 1000];
        if cache.read_whole(&file.id, 3, &mut part) == Lookup::Hit {
            assert!(part == file.bytes[3..1003]);
        }
    }
}

/// Returns the real disk usage.
fn taken(cache: &Path) -> u64 {
    ["groups", "contents"].iter().map(|dir| below(&cache.join(dir))).sum()
}

fn below(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for sub in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(sub.path()).into_iter().flatten().flatten() {
            bytes += file.metadata().map_or(0, |meta| meta.blocks() * 512);
        }
    }
    bytes
}

fn descriptors(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter(|to| to.starts_with(dir))
        .count()
}

#[test]
fn a_failing_disk_never_gives_a_wrong_byte_and_the_budget_is_kept() {
    let files = files();
    let working_set: usize = files.iter().step_by(2).map(|file| file.bytes.len()).sum();
    let (mut stored, mut evictions) = (0, 0);
    // How much is evicted depends on the scheduling of the cache's thread.
    for seed in 0..SEEDS_MAX {
        if seed >= 6 && stored > 100 && evictions > 20 {
            break;
        }
        let dir = tempfile::tempdir().unwrap();
        // A group, the remains of it after a failed write, and its `.ready` record.
        let slack = GROUP as u64 + 8192;
        let budget = working_set as u64 / [10, 3][usize::try_from(seed % 2).unwrap()];
        let disk = Arc::new(FaultyDisk::new(seed, 0));
        let cache = Cache::on_disk(dir.path(), options(budget), disk.clone()).unwrap();
        disk.per_mille.store([5, 30, 200][usize::try_from(seed % 3).unwrap()], Ordering::Relaxed);
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                let (cache, files, root) = (&cache, &files, dir.path());
                scope.spawn(move || {
                    let dice = Dice::new(seed * 100 + reader);
                    for turn in 0..500 {
                        let file = &files[usize::try_from(dice.roll(files.len() as u64)).unwrap()];
                        let place = dice.roll(file.groups() as u64);
                        read(cache, file, usize::try_from(place).unwrap(), &dice);
                        if turn % 50 == 0 {
                            let there = taken(root);
                            assert!(there <= budget + READERS * slack, "{there} of {budget}");
                        }
                    }
                });
            }
        });
        assert!(disk.faults.load(Ordering::Relaxed) > 50, "seed {seed}");
        cache.settle();
        stored += cache.stats().inserted_groups;
        evictions += cache.stats().evictions;
        // The disk works again: the cache must recover without help.
        disk.per_mille.store(0, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
        let file = &files[0];
        for _ in 0..1000 {
            if cache.whole(&file.id.digest, file.id.size).is_some() {
                break;
            }
            (0..file.groups()).for_each(|place| drop(file.insert(&cache, place)));
            cache.settle();
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(cache.whole(&file.id.digest, file.id.size).is_some(), "seed {seed}: not healed");
        assert_eq!(cache.stats().disk, super::DiskState::Good);
        cache.prune(budget / 2, Spare::Pins).unwrap();
        let there = taken(dir.path());
        assert!(there <= budget / 2 + READERS * slack, "{there} of {budget}");
        for file in &files {
            file.check(&cache);
        }
        drop(cache);
        assert_eq!(descriptors(dir.path()), 0, "seed {seed}: descriptors are left");
        assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    }
    // Guard against a test that exercised nothing.
    assert!(stored > 100 && evictions > 20, "{stored} groups stored, {evictions} evictions");
}

#[test]
fn a_power_loss_never_leaves_a_wrong_byte() {
    let files: Vec<File> = (0..4).map(|name| File::new(name, 70_000, GROUP)).collect();
    let (mut whole, mut parts) = (0, 0);
    for seed in 0..80 {
        let dice = Dice::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(LosingDisk::default());
        let cache = Cache::on_disk(dir.path(), options(1 << 30), disk.clone()).unwrap();
        for _ in 0..dice.roll(40) {
            let file = &files[usize::try_from(dice.roll(4)).unwrap()];
            let place = usize::try_from(dice.roll(file.groups() as u64)).unwrap();
            read(&cache, file, place, &dice);
            match dice.roll(30) {
                0 => drop(cache.prune(dice.roll(200_000), Spare::Pins)),
                1..5 => cache.settle(),
                _ => {}
            }
        }
        if dice.roll(2) == 0 {
            cache.settle();
        }
        let after = tempfile::tempdir().unwrap();
        let lost = Arc::new(disk.lose(&dice, dir.path(), after.path()));
        drop(cache);
        // Simulates another boot, which forces a recount.
        let _ = std::fs::remove_file(after.path().join("usage"));
        let cache = Cache::on_disk(after.path(), options(1 << 30), lost).unwrap();
        for file in &files {
            match cache.whole(&file.id.digest, file.id.size) {
                Some(_) => whole += 1,
                None => parts += file.check(&cache),
            }
            (0..file.groups()).for_each(|place| read(&cache, file, place, &dice));
        }
        cache.settle();
        for file in &files {
            (0..file.groups()).for_each(|place| read(&cache, file, place, &dice));
        }
    }
    // Guard against a test that exercised nothing.
    assert!(whole > 20 && parts > 25, "{whole} whole files, {parts} groups of others");
}
