//! Writable mounts: where changes go, when they come back, and what an overlay is.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::place::Place;

#[test]
fn changes_stay_beside_and_come_back() {
    let place = Place::with(&[("file", b"old"), ("gone", b"x"), ("dir/inside", b"y")]);
    let mounted = place.mount("base", &["--rw"]);
    fs::write(mounted.path("file"), "new").unwrap();
    fs::write(mounted.path("dir/more"), "z").unwrap();
    fs::remove_file(mounted.path("gone")).unwrap();
    mounted.unmount();
    // Not in the snapshot: only where it is mounted writable again.
    let mounted = place.mount("base", &[]);
    assert_eq!(mounted.read("file"), b"old");
    mounted.unmount();
    assert_eq!(place.cat("base:/gone"), b"x");
    let mounted = place.mount("base", &["--rw"]);
    assert_eq!(mounted.read("file"), b"new");
    assert_eq!(mounted.read("dir/more"), b"z");
    assert!(!mounted.path("gone").exists());
    mounted.unmount();
}

#[test]
fn changes_belong_to_one_snapshot() {
    let place = Place::with(&[("file", b"first")]);
    let upper = place.path("upper");
    let options = ["--rw", "--upper", upper.to_str().unwrap()];
    let first = place.mount("base", &options);
    fs::write(first.path("new"), "x").unwrap();
    first.unmount();
    let first = place.json(["show", "base"])["id"].as_str().unwrap().to_owned();
    place.write("file", "second");
    place.import("base");
    // On the same directory, but not the same snapshot: it begins with no changes.
    let second = place.mount("base", &["--rw"]);
    assert_eq!(second.read("file"), b"second");
    assert!(!second.path("new").exists());
    second.unmount();
    let mnt = place.mnt();
    let words = ["mount", "base", mnt.to_str().unwrap()].into_iter().chain(options);
    let said = place.refused(words);
    assert!(said.contains("holds changes to") && said.contains(&first), "{said}");
    let first = place.mount(&first, &options);
    assert_eq!(first.read("new"), b"x");
    first.unmount();
}

#[test]
fn scratch_changes_end_with_the_mount() {
    let place = Place::with(&[("file", b"old")]);
    let mounted = place.mount("base", &["--rw", "--scratch"]);
    fs::write(mounted.path("file"), "new").unwrap();
    mounted.unmount();
    place.assert_nothing_left();
    let mounted = place.mount("base", &["--rw"]);
    assert_eq!(mounted.read("file"), b"old");
    mounted.unmount();
}

#[test]
fn kept_changes_can_be_discarded() {
    let place = Place::with(&[("file", b"old")]);
    let mnt = place.mnt();
    let mounted = place.mount("base", &["--rw"]);
    fs::write(mounted.path("file"), "new").unwrap();
    let answer = place.json(["umount", mnt.to_str().unwrap(), "--discard"]);
    assert!(answer["changes"].is_null(), "{answer}");
    place.assert_nothing_left();
    drop(mounted);
    // What the user has named is the user's.
    let upper = place.path("upper");
    let mounted = place.mount("base", &["--rw", "--upper", upper.to_str().unwrap()]);
    fs::write(mounted.path("file"), "new").unwrap();
    let answer = place.json(["umount", mnt.to_str().unwrap(), "--discard"]);
    assert_eq!(answer["changes"], upper.to_str().unwrap());
    assert_eq!(fs::read(upper.join("upper/file")).unwrap(), b"new");
    drop(mounted);
}

#[test]
fn directories_of_the_snapshot_can_be_renamed() {
    let place = Place::with(&[("dir/sub/file", b"x"), ("other/file", b"y")]);
    let mounted = place.mount("base", &["--rw"]);
    fs::rename(mounted.path("dir"), mounted.path("moved")).unwrap();
    fs::rename(mounted.path("moved/sub"), mounted.path("other/sub")).unwrap();
    assert_eq!(mounted.read("other/sub/file"), b"x");
    assert!(!mounted.path("dir").exists());
    mounted.unmount();
    let mounted = place.mount("base", &["--rw"]);
    assert_eq!(mounted.read("other/sub/file"), b"x");
    assert!(!mounted.path("moved/sub").exists());
    mounted.unmount();
}

#[test]
fn changing_one_name_of_a_hard_link_parts_it_from_the_others() {
    let place = Place::new();
    let file = place.write("a", "old");
    fs::hard_link(file, place.tree().join("b")).unwrap();
    place.import("base");
    let mounted = place.mount("base", &["--rw"]);
    let mut file = File::options().append(true).open(mounted.path("a")).unwrap();
    file.write_all(b" and new").unwrap();
    drop(file);
    assert_eq!(mounted.read("a"), b"old and new");
    assert_eq!(mounted.read("b"), b"old");
    // Links that are made in the mount are links.
    fs::hard_link(mounted.path("a"), mounted.path("c")).unwrap();
    let [a, c] = ["a", "c"].map(|name| fs::metadata(mounted.path(name)).unwrap().ino());
    assert_eq!(a, c);
    mounted.unmount();
}

#[test]
fn the_root_directory_is_the_snapshots() {
    let place = Place::new();
    fs::set_permissions(place.tree(), Permissions::from_mode(0o1751)).unwrap();
    std::os::unix::fs::chown(place.tree(), Some(12), Some(34)).unwrap();
    place.import("base");
    for options in [&[][..], &["--rw", "--scratch"]] {
        let mounted = place.mount("base", options);
        let stat = fs::metadata(place.mnt()).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o1751, 12, 34));
        mounted.unmount();
    }
}
