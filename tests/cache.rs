//! `inlay cache` with the built command: sizes, eviction, pins, damage; with mounts and without.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::{content, scratch};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A state with a snapshot of each of these files.
struct Place {
    inlay: Inlay,
    scratch: tempfile::TempDir,
}

impl Place {
    fn new(files: &[(&str, u64)]) -> Self {
        let place = Self { inlay: local(), scratch: scratch().unwrap() };
        for (name, len) in files {
            let dir = place.scratch.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("file"), bytes(name, *len)).unwrap();
            import(&place.inlay, &of("dir", &dir), name);
        }
        place
    }

    fn json(&self, words: &[&str]) -> Value {
        let ran = self.inlay.succeed([words, &["--json"]].concat()).unwrap();
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    fn status(&self) -> Value {
        self.json(&["cache", "status"])
    }

    fn cat(&self, name: &str, len: u64) {
        let ran = self.inlay.succeed(["cat", &format!("{name}:/file")]).unwrap();
        assert!(ran.stdout == bytes(name, len), "{name}");
    }

    fn used(&self) -> u64 {
        self.status()["used_bytes"].as_u64().unwrap()
    }

    fn cached(&self) -> Vec<PathBuf> {
        let below = |dir: &Path| -> Vec<PathBuf> {
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        let cache = self.inlay.state().join("cache");
        ["groups", "contents"]
            .iter()
            .flat_map(|dir| below(&cache.join(dir)))
            .flat_map(|dir| below(&dir))
            .collect()
    }
}

fn bytes(name: &str, len: u64) -> Vec<u8> {
    content::random(name, usize::try_from(len).unwrap())
}

/// A mount that ends with the test.
struct Mounted<'a>(&'a Place, PathBuf);

impl<'a> Mounted<'a> {
    fn new(place: &'a Place, name: &str, options: &[&str]) -> Self {
        let dir = place.scratch.path().join(format!("mnt-{name}"));
        fs::create_dir(&dir).unwrap();
        let mounted = Self(place, dir);
        let dir = mounted.1.to_str().unwrap();
        place.inlay.succeed([&["mount", name, dir], options].concat()).unwrap();
        mounted
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = self.0.inlay.run(["umount", self.1.to_str().unwrap()]);
    }
}

#[test]
fn cached_data_is_counted_and_can_be_pruned() {
    let place = Place::new(&[("large", 3 * MIB), ("small", 9000)]);
    assert_eq!(place.used(), 0);
    place.cat("large", 3 * MIB);
    place.cat("small", 9000);
    let status = place.status();
    assert_eq!((&status["groups"], &status["disk"]), (&1.into(), &"good".into()));
    let contents = ["contents_whole", "contents_partial"].map(|key| status[key].as_u64().unwrap());
    assert_eq!(contents.iter().sum::<u64>(), 1, "{status}");
    assert!((3 * MIB..4 * MIB).contains(&place.used()));
    // The small one was used last.
    let pruned = place.json(&["cache", "prune", "--to", "1M"]);
    assert_eq!((&pruned["contents"], &pruned["groups"]), (&1.into(), &0.into()), "{pruned}");
    assert_eq!(place.used(), 12_288);
    place.json(&["cache", "prune", "--all"]);
    assert_eq!((place.used(), place.cached()), (0, vec![]));
    place.cat("large", 3 * MIB);
}

#[test]
fn a_size_is_remembered_and_kept_to() {
    let names: Vec<String> = (0..8).map(|name| format!("s{name}")).collect();
    let files: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 2 * MIB)).collect();
    let place = Place::new(&files);
    assert_eq!(place.status()["budget"], "auto");
    {
        let mounted = Mounted::new(&place, "s0", &["--cache-size", "8M"]);
        assert!(fs::read(mounted.1.join("file")).unwrap() == bytes("s0", 2 * MIB));
    }
    assert_eq!(place.status()["budget_bytes"], 8 * MIB);
    for name in &names {
        place.cat(name, 2 * MIB);
        assert!(place.used() <= 8 * MIB, "{}", place.used());
    }
    // What was used last is there, and nothing else is needed for it. Read twice: of the first
    // read a piece may have come while others still made room.
    place.cat("s7", 2 * MIB);
    let blobs = place.inlay.state().join("store/blobs");
    fs::rename(&blobs, blobs.with_extension("away")).unwrap();
    place.cat("s7", 2 * MIB);
    assert!(!place.inlay.run(["cat", "s0:/file"]).unwrap().status.success());
}

#[test]
fn a_pinned_snapshot_stays_and_needs_no_store() {
    let place = Place::new(&[("pinned", 2 * MIB), ("other", 2 * MIB), ("small", 5000)]);
    place.inlay.succeed(["cache", "pin", "--no-fetch", "small"]).unwrap();
    assert_eq!(place.used(), 0);
    place.inlay.succeed(["cache", "pin", "pinned"]).unwrap();
    assert_eq!(place.status()["contents_whole"], 1);
    place.cat("other", 2 * MIB);
    place.cat("small", 5000);
    let said = place.inlay.fail(["cache", "prune", "--to", "0"]).unwrap();
    assert!(said.stderr.contains("in use or pinned"), "{said:?}");
    let blobs = place.inlay.state().join("store/blobs");
    fs::rename(&blobs, blobs.with_extension("away")).unwrap();
    place.cat("pinned", 2 * MIB);
    place.cat("small", 5000);
    assert!(!place.inlay.run(["cat", "other:/file"]).unwrap().status.success());
    assert_eq!(place.status()["pins"].as_array().unwrap().len(), 2);
    place.inlay.succeed(["cache", "unpin", "small"]).unwrap();
    let said = place.inlay.fail(["cache", "unpin", "small"]).unwrap();
    assert!(said.stderr.contains("is not pinned"), "{said:?}");
    place.inlay.succeed(["cache", "prune", "--all", "--pinned"]).unwrap();
    assert_eq!(place.used(), 0);
}

#[test]
fn snapshots_larger_than_the_cache_are_not_pinned() {
    let place = Place::new(&[("large", 9 * MIB)]);
    drop(Mounted::new(&place, "large", &["--cache-size", "8M"]));
    let said = place.inlay.fail(["cache", "pin", "large"]).unwrap();
    assert!(said.stderr.contains("--cache-size"), "{said:?}");
    assert_eq!(place.status()["pins"], Value::Array(vec![]));
    place.cat("large", 9 * MIB);
}

#[test]
fn damage_is_found_removed_and_mended() {
    let place = Place::new(&[("large", 2 * MIB), ("small", 9000)]);
    place.cat("large", 2 * MIB);
    place.cat("small", 9000);
    let clean = place.json(&["cache", "verify"]);
    assert_eq!((&clean["groups"], &clean["contents"]), (&1.into(), &1.into()));
    assert_eq!(clean["removed"], Value::Array(vec![]));
    for path in place.cached() {
        let mut bytes = fs::read(&path).unwrap();
        if bytes.len() > 5000 {
            bytes[4000] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let ran = place.inlay.run(["cache", "verify", "--json"]).unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(found["removed"].as_array().unwrap().len(), 2, "{found}");
    place.inlay.succeed(["cache", "verify"]).unwrap();
    place.cat("large", 2 * MIB);
    place.cat("small", 9000);
}

#[test]
fn the_cache_is_looked_after_while_it_is_in_use() {
    let place = Place::new(&[("large", 2 * MIB)]);
    let mounted = Mounted::new(&place, "large", &[]);
    let file = mounted.1.join("file");
    assert!(fs::read(&file).unwrap() == bytes("large", 2 * MIB));
    place.inlay.succeed(["cache", "verify"]).unwrap();
    place.inlay.succeed(["cache", "prune", "--all"]).unwrap();
    // Another mount of the same contents, and the first, go on.
    assert!(fs::read(&file).unwrap() == bytes("large", 2 * MIB));
    place.cat("large", 2 * MIB);
    drop(mounted);
}
