//! Writable mounts: where changes go, when they come back, and what an overlay is.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use inlay_testkit::acl::{self, Entry};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::process::{Signal, kill_process};

use crate::place::{Place, system};

const ACL: &str = "system.posix_acl_access";

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
fn files_with_long_paths_are_renamed_and_linked() {
    let place = Place::new();
    // 4 names of 200 bytes: far more than the 256 bytes that overlays have for a path.
    let deep = (0..4).map(|level| format!("{level}").repeat(200)).collect::<Vec<_>>().join("/");
    for name in ["moved", "linked", "chmod", "beside", "dir/inside"] {
        place.write(&format!("{deep}/{name}"), name);
    }
    place.import("base");
    let mounted = place.mount("base", &["--rw"]);
    let at = |name: &str| mounted.path(&format!("{deep}/{name}"));
    fs::rename(at("moved"), mounted.path("moved")).unwrap();
    fs::hard_link(at("linked"), mounted.path("linked")).unwrap();
    fs::set_permissions(at("chmod"), Permissions::from_mode(0o600)).unwrap();
    fs::rename(at("chmod"), mounted.path("chmod")).unwrap();
    fs::rename(at("beside"), at("renamed")).unwrap();
    fs::rename(at("dir"), at("other-dir")).unwrap();
    mounted.unmount();
    let mounted = place.mount("base", &["--rw"]);
    for (path, contents) in [
        ("moved".to_owned(), "moved"),
        ("linked".to_owned(), "linked"),
        (format!("{deep}/linked"), "linked"),
        ("chmod".to_owned(), "chmod"),
        (format!("{deep}/renamed"), "beside"),
        (format!("{deep}/other-dir/inside"), "dir/inside"),
    ] {
        assert_eq!(mounted.read(&path), contents.as_bytes(), "{path}");
    }
    let [one, two] = ["linked".to_owned(), format!("{deep}/linked")]
        .map(|path| fs::metadata(mounted.path(&path)).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    assert!(!mounted.path(&format!("{deep}/moved")).exists());
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
fn a_mount_for_another_owner_leaves_everybody_elses_files_theirs() {
    let place = Place::new();
    // A large file and an attribute: below an overlay, the snapshot is attached in two parts.
    place.write("large", vec![7; 2 << 20]);
    for (name, id) in [("of-root", 0), ("of-user", 1000), ("of-other", 7)] {
        for path in [name.to_owned(), format!("later/{name}")] {
            chown(place.write(&path, name), Some(id), Some(id)).unwrap();
        }
    }
    let list = |entries: &[Entry]| {
        let (first, last) = ([Entry::Owner(6)], [Entry::OwningGroup(4), Entry::Mask(6)]);
        acl::encode(&[&first[..], entries, &last, &[Entry::Other(0)]].concat())
    };
    let listed = place.write("listed", "l");
    let both = list(&[Entry::User(0, 4), Entry::User(7, 4), Entry::User(1000, 2)]);
    setxattr(&listed, ACL, &both, XattrFlags::empty()).unwrap();
    place.import("base");
    let beside = place.path("beside");
    fs::create_dir(&beside).unwrap();
    let beside = beside.to_str().unwrap();
    let owner = |path: &Path| {
        let stat = fs::metadata(path).unwrap();
        (stat.uid(), stat.gid())
    };
    for options in [&[][..], &["--rw", "--scratch"]] {
        // The same snapshot as it is, at the same time.
        place.run(["mount", "base", beside]);
        let mounted = place.mount("base", &[options, &["--chown", "1000:1001"]].concat());
        let shown = |dir: &str| {
            let path = |name: &str| mounted.path(&format!("{dir}{name}"));
            ["of-root", "of-user", "of-other"].map(|name| owner(&path(name)))
        };
        assert_eq!(owner(&place.mnt()), (1000, 1001));
        assert_eq!(shown(""), [(1000, 1001), (1000, 1000), (7, 7)]);
        assert_eq!(owner(&mounted.path("large")), (1000, 1001));
        let mut value = [0; 100];
        let len = getxattr(mounted.path("listed"), ACL, &mut value).unwrap();
        assert_eq!(value[..len], list(&[Entry::User(1000, 6), Entry::User(7, 4)]));
        let flags = rustix::fs::statvfs(place.mnt()).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID));
        if !options.is_empty() {
            for name in ["of-root", "of-user"] {
                let mut append = Command::new("setpriv");
                append.args(["--reuid", "1000", "--regid", "1001", "--clear-groups", "tee", "-a"]);
                append.arg(mounted.path(name)).stdin(Stdio::null()).stdout(Stdio::null());
                system(&mut append);
            }
            assert_eq!(shown(""), [(1000, 1001), (1000, 1000), (7, 7)]);
        }
        // What was not looked at yet is answered by another daemon.
        mounted.wait_for_end(|| kill_process(mounted.pid(), Signal::KILL).unwrap());
        place.run(["mounts"]);
        assert_eq!(shown("later/"), [(1000, 1001), (1000, 1000), (7, 7)]);
        let plain = ["later", "later/of-root", "later/of-user", "of-other"]
            .map(|name| owner(&Path::new(beside).join(name)).0);
        assert_eq!(plain, [0, 0, 1000, 7]);
        mounted.unmount();
        place.run(["umount", beside]);
    }
}

#[test]
fn the_root_directory_is_the_snapshots() {
    let place = Place::new();
    fs::set_permissions(place.tree(), Permissions::from_mode(0o1751)).unwrap();
    chown(place.tree(), Some(12), Some(34)).unwrap();
    place.import("base");
    for options in [&[][..], &["--rw", "--scratch"]] {
        let mounted = place.mount("base", options);
        let stat = fs::metadata(place.mnt()).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o1751, 12, 34));
        mounted.unmount();
    }
}
