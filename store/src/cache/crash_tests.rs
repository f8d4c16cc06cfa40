//! Kills processes while they store, and checks that they leave no wrong bytes behind.
//!
//! The victims are this test program, started again to run one ignored test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::content_tests::File;
use super::{Budget, Cache, CacheOptions, Insert};
use crate::ids::{Digest, GroupDigest};
use crate::units::ByteSize;

const DIR: &str = "INLAY_TEST_CRASH_DIR";
const SEED: &str = "INLAY_TEST_CRASH_SEED";
const NAMES: u64 = 400;
const BUDGET: u64 = 8 << 20;

fn digest(name: u64) -> GroupDigest {
    GroupDigest(Digest::of(&name.to_le_bytes()))
}

fn bytes(name: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1000 + usize::try_from(name % 7).unwrap() * 15_000];
    blake3::Hasher::new().update(&name.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Splitmix64: a deterministic sequence from a seed.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn options() -> CacheOptions {
    CacheOptions { budget: Some(Budget::Bytes(ByteSize(BUDGET))), ..CacheOptions::default() }
}

#[test]
#[ignore = "a part of the test below: stores groups until it is killed"]
fn victim() {
    let (Ok(dir), Ok(seed)) = (std::env::var(DIR), std::env::var(SEED)) else { return };
    let mut state = seed.parse().unwrap();
    let cache = Cache::open(Path::new(&dir), options()).unwrap();
    let mut stored = 0u64;
    loop {
        let name = next(&mut state) % NAMES;
        let insert = cache.insert(&digest(name), &bytes(name));
        assert!(!matches!(insert, Insert::Failed(_)), "{insert:?}");
        assert!(cache.read_all(&digest(name)).is_none_or(|decoded| decoded == bytes(name)));
        stored += 1;
        println!("{stored} done");
    }
}

fn contents() -> Vec<File> {
    (0..30).map(|name| File::new(name, 150_000 + 1000 * name as usize, 40_000)).collect()
}

#[test]
#[ignore = "a part of the test below: fills contents until it is killed"]
fn content_victim() {
    let (Ok(dir), Ok(seed)) = (std::env::var(DIR), std::env::var(SEED)) else { return };
    let mut state = seed.parse().unwrap();
    let cache = Cache::open(Path::new(&dir), options()).unwrap();
    let (contents, mut stored) = (contents(), 0u64);
    loop {
        let file = &contents[usize::try_from(next(&mut state)).unwrap_or(0) % contents.len()];
        let place = usize::try_from(next(&mut state) % file.groups() as u64).unwrap();
        let insert = file.insert(&cache, place);
        assert!(!matches!(insert, Insert::Failed(_)), "{insert:?}");
        assert!(file.read(&cache, place).is_none_or(|read| read == file.raw(place)));
        stored += 1;
        println!("{stored} done");
    }
}

/// Kills the process when dropped, so that a failing test leaves none behind.
struct Victim(Child);

impl Victim {
    fn start(victim: &str, dir: &Path, seed: u64) -> Self {
        let victim = format!("cache::crash_tests::{victim}");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", &victim])
            .env(DIR, dir)
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Blocks until the process has stored `groups` groups. It continues, and is killed while it
    /// stores another.
    fn wait_for(&mut self, groups: u64) {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let wanted = format!("{groups} done");
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with(&wanted)), "it ended");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_killed_process_never_leaves_a_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 7;
    for round in 0..40 {
        // Sometimes a second process stores the same groups and outlives the first.
        let mut first = Victim::start("victim", dir.path(), next(&mut state));
        let mut second =
            (round % 3 == 0).then(|| Victim::start("victim", dir.path(), next(&mut state)));
        first.wait_for(1 + next(&mut state) % 40);
        let mut spin = next(&mut state) % 20_000;
        while spin > 0 {
            spin = std::hint::black_box(spin - 1);
        }
        drop(first);
        if let Some(second) = &mut second {
            second.wait_for(1 + next(&mut state) % 20);
        }
        drop(second);

        let cache = Cache::open(dir.path(), options()).unwrap();
        let mut cost = 0;
        for name in 0..NAMES {
            if let Some(decoded) = cache.read_all(&digest(name)) {
                assert_eq!(decoded, bytes(name), "round {round}");
                cost += (decoded.len() as u64 + 80).div_ceil(4096) * 4096;
            }
        }
        let stats = cache.stats();
        assert_eq!(stats.verify_failures, 0, "a file had its name before it was whole");
        assert_eq!(stats.disk_bytes, cost);
        assert!(cost <= BUDGET);
        assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 1);
        // Make room, so that the next round stores something.
        for name in (0..NAMES).filter(|name| (name + round) % 3 == 0) {
            let hex = digest(name).to_string();
            let _ = std::fs::remove_file(dir.path().join("groups").join(&hex[..2]).join(hex));
        }
        drop(cache);
        std::fs::remove_file(dir.path().join("usage")).unwrap();
    }
}

#[test]
fn a_killed_process_never_leaves_a_wrong_content() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, contents) = (11, contents());
    let (mut whole, mut groups) = (0, 0);
    for round in 0..30 {
        let mut first = Victim::start("content_victim", dir.path(), next(&mut state));
        let second =
            (round % 3 == 0).then(|| Victim::start("content_victim", dir.path(), next(&mut state)));
        first.wait_for(1 + next(&mut state) % 60);
        drop((first, second));

        let cache = Cache::open(dir.path(), options()).unwrap();
        assert_eq!(cache.inventory().unwrap().bytes(), cache.stats().disk_bytes);
        for file in &contents {
            groups += file.check(&cache);
            let sealed = cache.whole(&file.id.digest, file.id.size);
            if let Some(sealed) = &sealed {
                let mut bytes = vec![0; file.bytes.len()];
                std::os::unix::fs::FileExt::read_exact_at(&**sealed.file(), &mut bytes, 0).unwrap();
                assert!(bytes == file.bytes);
            }
            whole += u32::from(sealed.is_some());
        }
        assert_eq!(cache.stats().verify_failures, 0, "something was ready before it was there");
        assert!(cache.stats().disk_bytes <= BUDGET);
        // Make room, so that the next round stores something.
        cache.settle();
        cache.prune(BUDGET / 4, super::Spare::Pins).unwrap();
    }
    assert!(whole > 0 && groups > 100, "{whole} whole, {groups} groups");
}
