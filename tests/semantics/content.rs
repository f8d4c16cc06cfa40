//! Where bytes come from, and what happens when they are damaged, missing or too many.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use inlay_testkit::content;
use rustix::io::Errno;

use crate::place::{Place, source};

/// Turns a bit in the middle of a file. Returns what undoes it.
fn damage(path: &Path) -> impl FnOnce() + use<> {
    let (path, whole) = (path.to_owned(), fs::read(path).unwrap());
    let file = File::options().write(true).open(&path).unwrap();
    let middle = whole.len() / 2;
    file.write_all_at(&[whole[middle] ^ 1], middle as u64).unwrap();
    move || fs::write(path, whole).unwrap()
}

fn only(mut files: Vec<PathBuf>) -> PathBuf {
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn damage_in_the_store_is_an_error_and_never_a_wrong_byte() {
    let bytes = content::random("x", 1 << 20);
    let place = Place::with(&[("file", &bytes), ("tiny", b"in the index")]);
    let blob = only(place.files_in_state("store/blobs"));
    let mend = damage(&blob);
    let mounted = place.mount("base", &["--no-cache"]);
    let error = fs::read(mounted.path("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{error}");
    // What is not hit by it can be read, and the error goes away with its cause.
    assert_eq!(mounted.read("tiny"), b"in the index");
    assert!(place.inlay.daemon_log().contains(&name(&blob)));
    mend();
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
}

#[test]
fn a_lost_object_is_an_error_until_it_is_back() {
    let bytes = content::random("x", 1 << 20);
    let place = Place::with(&[("file", &bytes)]);
    let blob = only(place.files_in_state("store/blobs"));
    let mounted = place.mount("base", &["--no-cache"]);
    fs::rename(&blob, place.path("away")).unwrap();
    let error = fs::read(mounted.path("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{error}");
    assert!(place.inlay.daemon_log().contains(&name(&blob)));
    fs::rename(place.path("away"), &blob).unwrap();
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
}

#[test]
fn verify_names_what_is_damaged_or_missing() {
    let place = Place::with(&[("file", &content::random("x", 1 << 20))]);
    place.run(["verify", "base"]);
    let blob = only(place.files_in_state("store/blobs"));
    let verify = || {
        let ran = place.inlay.fail(["verify", "base", "--json"]).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        ran.text()
    };
    let mend = damage(&blob);
    assert!(verify().contains(&name(&blob)));
    mend();
    place.run(["verify", "base"]);
    fs::remove_file(&blob).unwrap();
    assert!(verify().contains(&name(&blob)));
}

#[test]
fn damage_in_the_cache_is_noticed_and_mended() {
    let bytes = content::random("x", 1 << 20);
    let place = Place::with(&[("file", &bytes)]);
    let mounted = place.mount("base", &[]);
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
    // A daemon that has looked at the files once, and is still there, need not look again.
    place.inlay.wait_until_quiet().unwrap();
    let mut cached = place.files_in_state("cache/groups");
    cached.extend(place.files_in_state("cache/contents"));
    assert!(!cached.is_empty());
    for path in &cached {
        drop(damage(path));
    }
    let mounted = place.mount("base", &[]);
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
    assert!(place.inlay.daemon_log().contains("a changed cache file is not used unchecked"));
    // It is whole again: the store is not needed.
    fs::rename(place.inlay.state().join("store/blobs"), place.path("away")).unwrap();
    let mounted = place.mount("base", &[]);
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
}

#[test]
fn a_damaged_local_index_is_fetched_again() {
    let place = Place::with(&[("file", b"in the index"), ("other", b"x")]);
    let index = only(place.files_in_state("indexes"));
    let whole = fs::read(&index).unwrap();
    for cut in [0, 100, whole.len() - 1] {
        fs::write(&index, &whole[..cut]).unwrap();
        assert_eq!(place.cat("base:/file"), b"in the index");
        assert!(fs::read(&index).unwrap() == whole);
    }
    fs::remove_file(&index).unwrap();
    assert_eq!(place.cat("base:/file"), b"in the index");
    drop(damage(&index));
    assert_eq!(place.cat("base:/file"), b"in the index");
    assert!(fs::read(&index).unwrap() == whole);
}

#[test]
fn what_was_read_once_needs_no_store() {
    let bytes = content::random("x", 300_000);
    let place = Place::with(&[("file", &bytes), ("unread", &content::random("y", 900_000))]);
    assert!(place.cat("base:/file") == bytes);
    let mounted = place.mount("base", &[]);
    fs::rename(place.inlay.state().join("store/blobs"), place.path("away")).unwrap();
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
}

#[test]
fn the_cache_keeps_to_its_size() {
    let bytes = content::random("x", 6 << 20);
    let place = Place::with(&[("file", &bytes)]);
    let mounted = place.mount("base", &["--cache-size", "2M"]);
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
    let sizes = ["cache/groups", "cache/contents"].map(|dir| place.files_in_state(dir));
    let sizes = sizes.into_iter().flatten().map(|path| {
        let stat = fs::metadata(path).unwrap();
        stat.blocks() * 512
    });
    let taken: u64 = sizes.sum();
    assert!((1 << 20..=2 << 20).contains(&taken), "{taken}");
}

#[test]
fn what_is_pinned_stays_in_the_cache() {
    let bytes = content::random("x", 1 << 20);
    let place = Place::with(&[("large", &bytes), ("small", &bytes[..5000])]);
    place.run(["cache", "pin", "base"]);
    place.run(["cache", "prune", "--all"]);
    fs::rename(place.inlay.state().join("store/blobs"), place.path("away")).unwrap();
    assert!(place.cat("base:/large") == bytes);
    assert!(place.cat("base:/small") == bytes[..5000]);
    place.run(["cache", "unpin", "base"]);
    place.run(["cache", "prune", "--all"]);
    place.refused(["cat", "base:/large"]);
}

#[test]
fn the_cache_can_be_checked_and_emptied() {
    let bytes = content::random("x", 1 << 20);
    let place = Place::with(&[("large", &bytes), ("small", &bytes[..5000])]);
    place.run(["cache", "pin", "base"]);
    place.run(["cache", "unpin", "base"]);
    place.run(["cache", "verify"]);
    let whole = place.files_in_state("cache/contents");
    let path = whole.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    drop(damage(path));
    assert!(place.refused(["cache", "verify"]).contains("damaged"));
    place.run(["cache", "verify"]);
    assert!(place.cat("base:/large") == bytes);
    place.run(["cache", "prune", "--all"]);
    assert_eq!(place.json(["cache", "status"])["used_bytes"], 0);
    assert!(place.cat("base:/small") == bytes[..5000]);
}

#[test]
fn an_import_shows_nothing_before_all_is_there() {
    let place = Place::new();
    place.write("file", content::random("x", 1 << 20));
    let whole = place.path("whole.tar");
    let tree = source("dir", &place.tree());
    place.run(["import", &tree, "--name", "other"]);
    place.run(["export", "other", &source("tar", &whole)]);
    place.run(["untag", "other"]);
    let listed = place.run(["snapshots", "--json"]).text();

    let cut = place.path("cut.tar");
    let bytes = fs::read(&whole).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let said = place.refused(["import", &source("tar", &cut), "--name", "base"]);
    assert!(said.contains("cut.tar"), "{said}");
    assert_eq!(place.run(["snapshots", "--json"]).text(), listed);
    assert!(place.refused(["ls", "base"]).contains("no snapshot 'base'"));
    place.run(["import", &source("tar", &whole), "--name", "base"]);
    place.run(["verify", "base"]);
}

#[test]
fn importing_again_uploads_nothing_again() {
    let place = Place::new();
    place.write("file", content::random("x", 3 << 20));
    let tree = source("dir", &place.tree());
    let first = place.json(["import", &tree, "--name", "base"]);
    assert_eq!((&first["blobs_uploaded"], &first["blobs_already_there"]), (&1.into(), &0.into()));
    // As an import that was cut short leaves it: blobs, but no index, no record, no name.
    for dir in ["store/snapshots", "store/names", "store/indexes", "indexes"] {
        place.files_in_state(dir).iter().for_each(|path| fs::remove_file(path).unwrap());
    }
    assert_eq!(place.json(["snapshots"]), serde_json::json!([]));
    let again = place.json(["import", &tree, "--name", "base"]);
    assert_eq!((&again["blobs_uploaded"], &again["blobs_already_there"]), (&0.into(), &1.into()));
    assert_eq!(again["id"], first["id"]);
    // With the earlier snapshot to compare with, not even that is packed.
    let known = place.json(["import", &tree, "--name", "base"]);
    let blobs = (&known["blobs_uploaded"], &known["blobs_already_there"]);
    assert_eq!(blobs, (&0.into(), &0.into()));
    assert_eq!(known["known_bytes"], 3 << 20);
}

#[test]
fn a_changed_tree_costs_what_changed() {
    let place = Place::new();
    for number in 0..10 {
        place.write(&format!("file-{number}"), content::random(&number.to_string(), 400_000));
    }
    place.import("base");
    place.write("file-5", content::random("changed", 400_000));
    let tree = source("dir", &place.tree());
    let changed = place.json(["import", &tree, "--name", "base"]);
    let stored = changed["stored_bytes_new"].as_u64().unwrap();
    assert!((400_000..500_000).contains(&stored), "{stored}");
    assert_eq!(changed["known_bytes"], 9 * 400_000);
    place.run(["verify", "base"]);
}
