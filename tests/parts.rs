//! A snapshot with small and large files below an overlay: two layers on two connections, which
//! nobody may notice. They need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::{Comparison, Holes, content, scratch};
use serde_json::Value;
use tempfile::TempDir;

const LARGE: usize = (1 << 20) + 4321;

/// Small and large files beside each other, apart, and under names of each other's directories.
fn fill(tree: &Path) {
    for dir in ["both/deep/deeper", "small/deep", "large/deep", "empty"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for (path, len) in [
        ("top", 9),
        ("top-large", LARGE),
        ("both/small", 5000),
        ("both/large", LARGE),
        ("both/deep/deeper/large", LARGE + 1),
        ("both/deep/small", 0),
        ("small/a", 10),
        ("small/deep/b", 300_000),
        ("large/deep/a", LARGE + 2),
    ] {
        fs::write(tree.join(path), content::random(path, len)).unwrap();
    }
    fs::write(tree.join("small/attribute"), "x").unwrap();
    rustix::fs::setxattr(
        tree.join("small/attribute"),
        "user.a",
        b"value",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    fs::hard_link(tree.join("both/large"), tree.join("small/deep/linked")).unwrap();
    fs::hard_link(tree.join("small/a"), tree.join("large/linked")).unwrap();
    symlink("../both/large", tree.join("small/link")).unwrap();
    fs::set_permissions(tree.join("both/deep"), Permissions::from_mode(0o2750)).unwrap();
}

struct Host {
    inlay: Inlay,
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { inlay: local(), dir: scratch().unwrap() };
        let tree = host.dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fill(&tree);
        import(&host.inlay, &of("dir", &tree), "base");
        host
    }

    /// A second tree, to be changed as the mount is.
    fn model(&self) -> PathBuf {
        let model = self.dir.path().join("model");
        fs::create_dir(&model).unwrap();
        fill(&model);
        model
    }

    fn slots(&self) -> usize {
        let records = fs::read_dir(self.inlay.state().join("mounts")).unwrap();
        let records = records.map(|entry| entry.unwrap().path());
        let mut records = records.filter(|path| path.extension().is_some_and(|it| it == "json"));
        let record = fs::read(records.next().unwrap()).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["slots"].as_array().unwrap().len()
    }
}

/// All but what an overlay can't keep: times of what the test itself changes, and the link counts of
/// directories, of which it counts none where it merges them.
fn same(left: &Path, right: &Path) {
    let all = Comparison::default().holes(Holes::Ignore);
    all.without_field("directory", "link count").run(left, right).unwrap();
}

#[test]
fn two_layers_are_one_tree() {
    let host = Host::new();
    let mounted = host.inlay.mount("base", &["--rw", "--scratch"]).unwrap();
    assert_eq!(host.slots(), 2, "this tree was made to be shown in two parts");
    same(&host.dir.path().join("tree"), mounted.path());
    for absent in ["absent", "both/absent", "both/deep/absent", "small/absent", "empty/absent"] {
        assert!(fs::symlink_metadata(mounted.path().join(absent)).is_err());
    }
    mounted.unmount().unwrap();

    let mounted = host.inlay.mount("base", &[]).unwrap();
    assert_eq!(host.slots(), 1, "alone it is shown as it is");
    Comparison::default().run(&host.dir.path().join("tree"), mounted.path()).unwrap();
    mounted.unmount().unwrap();
}

/// What programs do to a tree, with files and directories of both layers.
fn change(tree: &Path) {
    let at = |path: &str| tree.join(path);
    fs::rename(at("both"), at("renamed")).unwrap();
    fs::rename(at("renamed/deep/deeper/large"), at("small/moved")).unwrap();
    fs::remove_file(at("renamed/small")).unwrap();
    fs::remove_dir_all(at("large")).unwrap();
    fs::create_dir(at("large")).unwrap();
    fs::write(at("large/new"), "n").unwrap();
    fs::rename(at("top-large"), at("top")).unwrap();
    fs::set_permissions(at("small/moved"), Permissions::from_mode(0o700)).unwrap();
    File::options().append(true).open(at("small/deep/b")).unwrap().write_all(b"more").unwrap();
    File::options().write(true).open(at("top")).unwrap().write_all(b"begins").unwrap();
    fs::rename(at("small"), at("large/small")).unwrap();
    fs::write(at("empty/large"), content::random("new", LARGE)).unwrap();
}

#[test]
fn changes_above_two_layers_are_those_of_any_directory() {
    let host = Host::new();
    let model = host.model();
    let mut mounted = host.inlay.mount("base", &["--rw"]).unwrap();
    assert_eq!(host.slots(), 2);
    let now = |path: &Path| {
        // What was changed has new times on both sides: all get the same.
        let touched = Command::new("find")
            .arg(path)
            .args(["-exec", "touch", "-h", "-d", "@1", "{}", "+"])
            .status();
        assert!(touched.unwrap().success());
    };
    // The links of one file part from each other in an overlay: not the subject here.
    for tree in [&model, mounted.path()] {
        fs::remove_file(tree.join("small/deep/linked")).unwrap();
        fs::remove_file(tree.join("large/linked")).unwrap();
        change(tree);
    }
    now(&model);
    now(mounted.path());
    let compare = |mnt: &Path| {
        let all = Comparison::default().holes(Holes::Ignore);
        let all = all.without_attributes("trusted.overlay.");
        let all = all.without_field("directory", "link count");
        all.without_field("regular", "link count").run(&model, mnt).unwrap();
    };
    compare(mounted.path());

    // The next daemon serves both layers, and what was changed is there in the next mount.
    mounted.kill_server().unwrap();
    compare(mounted.path());
    assert_eq!(host.slots(), 2);
    let dir = mounted.path().to_owned();
    host.inlay.succeed(["umount".as_ref(), dir.as_os_str()]).unwrap();
    mounted.mount_again("base", &["--rw"]).unwrap();
    compare(mounted.path());
    mounted.unmount().unwrap();
}

/// Programs such as git keep an inode's number to see whether a file is still the same.
#[test]
fn a_files_number_is_the_same_in_every_mount_of_its_kind() {
    let host = Host::new();
    let numbers = |options: &[&str]| {
        let mounted = host.inlay.mount("base", options).unwrap();
        let paths = ["top", "top-large", "both/large", "small/deep/linked", "small/a", "empty"];
        let found = paths.map(|path| fs::metadata(mounted.path().join(path)).unwrap().ino());
        assert_eq!(found[2], found[3], "one file with two names");
        for entry in fs::read_dir(mounted.path()).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            // An overlay has numbers of its own for directories, which listings do not show.
            assert!(metadata.is_dir() || entry.ino() == metadata.ino(), "{entry:?}");
        }
        mounted.unmount().unwrap();
        found
    };
    for options in [&[][..], &["--rw", "--scratch"]] {
        assert_eq!(numbers(options), numbers(options));
    }
}
