//! Where bytes come from, and what happens when they are damaged, missing or too many.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

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
fn verify_names_damaged_and_missing_objects() {
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
    assert!(place.inlay.daemon_log().contains("verifying a cache file that changed"));
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
fn cached_data_is_read_without_the_store() {
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
fn pinned_snapshots_stay_in_the_cache() {
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

/// All sorts of damage to a file of the store.
/// What is done to a file, by a name for it.
type Deed = (&'static str, fn(&Path));

const DAMAGE: [Deed; 5] = [
    ("one bit", |path| drop(damage(path))),
    ("cut", |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 3).unwrap();
    }),
    ("empty", |path| fs::write(path, "").unwrap()),
    ("gone", |path| fs::remove_file(path).unwrap()),
    ("a FIFO", fifo),
];

/// Puts a FIFO in the place of a file.
fn fifo(path: &Path) {
    fs::remove_file(path).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn importing_again_repairs_damaged_objects() {
    let bytes = content::random("x", 3 << 20);
    let place = Place::new();
    place.write("file", &bytes);
    let tree = source("dir", &place.tree());
    let id = place.import_as(&tree, &["--name", "base"]);
    let objects = ["store/blobs", "store/indexes", "store/snapshots"];
    // With a name, the earlier snapshot is built upon; without one, everything is packed again.
    for options in [&["--name", "base"][..], &[], &["--name", "base", "--repair"]] {
        for dir in objects {
            for (sort, damage) in DAMAGE {
                // A record with another letter is a record.
                if dir == "store/snapshots" && sort == "one bit" {
                    continue;
                }
                damage(&only(place.files_in_state(dir)));
                // A host that has seen nothing of it yet.
                place
                    .files_in_state("indexes")
                    .iter()
                    .for_each(|path| fs::remove_file(path).unwrap());
                place.refused(["verify", &id]);
                assert_eq!(place.import_as(&tree, options), id, "{dir} {sort}");
                place.run(["verify", &id]);
            }
        }
    }
    for (_, damage) in DAMAGE.iter().take(4) {
        damage(&only(place.files_in_state("store/names")));
        place.import_as(&tree, &["--name", "base"]);
        place.run(["verify", "base"]);
    }
    let mounted = place.mount("base", &["--no-cache"]);
    assert!(mounted.read("file") == bytes);
    mounted.unmount();
    // A snapshot that was built on another shares its blobs, which are stored again with it.
    place.write("more", content::random("y", 100_000));
    let next = place.import("base");
    let blobs = place.files_in_state("store/blobs");
    let largest = blobs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    drop(damage(largest));
    assert!(place.refused(["verify", &next]).contains("--repair"));
    place.import("base");
    place.run(["verify", "base"]);
}

#[test]
fn a_damaged_record_hides_no_other() {
    let place = Place::with(&[("file", b"first")]);
    let first = place.json(["show", "base"])["id"].as_str().unwrap().to_owned();
    place.write("file", "second");
    let second = place.import("other");
    let record = |id: &str| place.inlay.state().join(format!("store/snapshots/{id}.json"));
    let name = place.inlay.state().join("store/names/base.json");
    for (sort, damage) in DAMAGE.iter().filter(|(sort, _)| !["gone", "one bit"].contains(sort)) {
        let whole = [record(&first), name.clone()].map(|path| (fs::read(&path).unwrap(), path));
        damage(&record(&first));
        let listed = || {
            let ran = place.inlay.fail(["snapshots", "--json"]).unwrap();
            assert_eq!(ran.status.code(), Some(1), "{ran:?}");
            let list: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
            (list, ran.stderr)
        };
        let (list, said) = listed();
        assert_eq!(list[0]["id"], second, "{sort}");
        assert_eq!(list[0]["damaged"], serde_json::Value::Null);
        assert_eq!(list[1]["id"], first, "{sort}");
        assert_eq!(list[1]["names"][0], "base");
        let why = list[1]["damaged"].as_str().unwrap();
        assert!(why.contains(&format!("snapshots/{first}.json")), "{why}");
        assert!(said.contains(why), "{said}");
        // A damaged name hides neither its snapshot nor other names.
        damage(&name);
        let (list, said) = listed();
        assert_eq!(list[0]["names"][0], "other");
        assert_eq!(list[1]["names"], serde_json::json!([]));
        assert!(said.contains("names/base.json"), "{said}");
        assert_eq!(place.json(["show", "other"])["names"][0], "other");
        // What the record says is not needed to read the snapshot.
        assert_eq!(place.cat(&format!("{first}:/file")), b"first");
        for (bytes, path) in whole {
            fs::remove_file(&path).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
    assert_eq!(place.json(["snapshots"]).as_array().unwrap().len(), 2);
}

#[test]
fn only_regular_files_are_objects() {
    let place = Place::with(&[("file", &content::random("x", 1 << 20))]);
    let found = |dir: &str| only(place.files_in_state(dir));
    let (blob, index) = (found("store/blobs"), found("store/indexes"));
    let (record, name) = (found("store/snapshots"), found("store/names"));
    fs::remove_file(found("indexes")).unwrap();
    for path in [&blob, &index, &record, &name] {
        let away = place.path("away");
        fs::rename(path, &away).unwrap();
        fs::write(path, "").unwrap();
        for what in ["a FIFO", "a symbolic link", "a directory"] {
            fs::remove_file(path).unwrap();
            match what {
                "a FIFO" => {
                    fs::write(path, "").unwrap();
                    fifo(path);
                }
                "a symbolic link" => std::os::unix::fs::symlink(path, path).unwrap(),
                _ => fs::create_dir(path).unwrap(),
            }
            let said = place.refused(["verify", "base"]);
            let text = place.inlay.run(["verify", "base"]).unwrap().text();
            assert!(said.contains(what) || text.contains(what), "{}: {said}{text}", path.display());
            place.inlay.run(["snapshots"]).unwrap();
            if what == "a directory" {
                fs::remove_dir(path).unwrap();
                fs::write(path, "").unwrap();
            }
        }
        fs::rename(&away, path).unwrap();
    }
    // What does not belong there is passed over.
    let snapshots = record.parent().unwrap();
    fs::write(snapshots.join("notes \u{1b}[2J"), "").unwrap();
    fs::write(snapshots.join(std::ffi::OsStr::from_bytes(b"odd-\xff.json")), "").unwrap();
    std::os::unix::fs::symlink("loop", snapshots.join("loop")).unwrap();
    assert_eq!(place.json(["snapshots"]).as_array().unwrap().len(), 1);
    place.run(["verify", "base"]);
}

#[test]
fn a_changed_tree_costs_only_its_changes() {
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

#[test]
fn snapshots_of_older_versions_stay_readable() {
    let place = Place::new();
    let older = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let older = older.join("store-before-decoded-digests");
    let store = place.inlay.state().join("store");
    let copied = Command::new("cp").arg("-rT").args([&older, &store]).status().unwrap();
    assert!(copied.success());
    let lines: Vec<_> = (0..20_000).map(|line| format!("line {line} of a large file\n")).collect();
    let large = lines.concat();
    let small = "small contents, too long for the index: ".repeat(20);
    let mounted = place.mount("old", &["--no-cache"]);
    for (name, contents) in
        [("dir/large", &*large), ("dir/small", &small), ("tiny", "tiny"), ("link", &small)]
    {
        assert!(fs::read_to_string(mounted.path(name)).unwrap() == contents, "{name}");
    }
    drop(mounted);
    place.run(["verify", "old"]);

    // The next snapshot refers to its groups.
    place.write("dir/large", &large);
    place.write("dir/small", small + "changed");
    let tree = source("dir", &place.tree());
    let next = place.json(["import", &tree, "--name", "old"]);
    assert_eq!(next["known_bytes"], large.len());
    place.run(["verify", "old"]);
    assert!(place.cat("old:/dir/large") == large.as_bytes());
}
