//! What programs compare to tell files apart and to notice changes: inode and device numbers, and the
//! time of change.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, FileTimes, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use inlay_testkit::content;
use inlay_testkit::tree::EveryKind;

use crate::place::Place;

/// What programs with 32 bits for an inode number can keep.
const SMALL: u64 = 1 << 32;

/// All that is below `dir`, without following links.
fn all(dir: &Path) -> BTreeMap<PathBuf, Metadata> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        let metadata = fs::symlink_metadata(&next).unwrap();
        if metadata.is_dir() {
            left.extend(fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(next.strip_prefix(dir).unwrap().to_owned(), metadata);
    }
    found
}

fn numbers(tree: &BTreeMap<PathBuf, Metadata>) -> BTreeMap<&Path, u64> {
    let files = tree.iter().filter(|(_, metadata)| !metadata.is_dir());
    files.map(|(path, metadata)| (path.as_path(), metadata.ino())).collect()
}

/// Paths that look like one file to a program that keeps numbers as JavaScript does.
fn assert_told_apart(tree: &BTreeMap<PathBuf, Metadata>) {
    let mut seen: HashMap<(u64, u64), &Path> = HashMap::new();
    for (path, metadata) in tree {
        let ino = metadata.ino();
        assert!(ino < SMALL, "{} has the number {ino}", path.display());
        if metadata.nlink() > 1 && !metadata.is_dir() {
            continue;
        }
        if let Some(other) = seen.insert((metadata.dev(), ino), path) {
            panic!("{} and {} look like one file: {ino}", path.display(), other.display());
        }
    }
}

#[test]
fn inode_numbers_are_small_and_the_same_again() {
    let place = Place::new();
    // Files of all kinds, small ones and large ones: below an overlay these are two layers.
    EveryKind { entries: 300, large: 2 << 20 }.make(&place.tree()).unwrap();
    for extended in ["plain", "two"] {
        if extended == "two" {
            let attributed = place.write("attributed", "x");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(attributed, "user.a", b"b", flags).unwrap();
        }
        place.import("base");
        let first = place.mount("base", &["--rw", "--scratch"]);
        let tree = all(&place.mnt());
        assert_told_apart(&tree);
        first.unmount();
        // Another snapshot is attached meanwhile, so what is internal to the server differs.
        let other = place.mount("base", &[]);
        let read_only = all(&place.mnt());
        assert_told_apart(&read_only);
        other.unmount();
        let again = place.mount("base", &["--rw", "--scratch"]);
        let same = all(&place.mnt());
        assert_eq!(numbers(&same), numbers(&tree));
        // A change of attributes or contents does not make it another file while it is mounted.
        let path = again.path("sizes/text-4097");
        let before = fs::metadata(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(&path, "changed").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!((before.dev(), before.ino()), (after.dev(), after.ino()));
        again.unmount();
    }
}

#[test]
fn directories_have_one_device_so_that_no_walk_ends_at_them() {
    let place = Place::new();
    EveryKind { entries: 10, large: 2 << 20 }.make(&place.tree()).unwrap();
    place.import("base");
    let mounted = place.mount("base", &["--rw", "--scratch"]);
    fs::create_dir(mounted.path("sizes/new")).unwrap();
    fs::write(mounted.path("sizes/text-1"), "changed").unwrap();
    let tree = all(&place.mnt());
    let device = tree[Path::new("")].dev();
    for (path, metadata) in tree.iter().filter(|(_, metadata)| metadata.is_dir()) {
        assert_eq!(metadata.dev(), device, "{}", path.display());
    }
    // Both leave out what is on another device.
    let count = |command: &mut Command| {
        let output = command.current_dir(place.mnt()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let found = count(Command::new("find").args([".", "-xdev", "-print0"]));
    assert_eq!(found.split(|byte| *byte == 0).count() - 1, tree.len());
    let mut tar = Command::new("sh");
    tar.args([
        "-c",
        "tar --one-file-system -cf - . 2>/dev/null | tar -t --quoting-style=escape | wc -l",
    ]);
    let listed: usize = String::from_utf8(count(&mut tar)).unwrap().trim().parse().unwrap();
    let sockets = tree
        .values()
        .filter(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()));
    assert_eq!(listed, tree.len() - sockets.count());
    mounted.unmount();
}

fn git(dir: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    // Nothing of who runs the test.
    command.env("HOME", dir).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_OPTIONAL_LOCKS", "1");
    let who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "safe.directory=*"];
    let output = command.args(who).arg("-C").arg(dir).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Puts `bytes` into a file and its times back to what they were, as `cp -p`, `rsync -t` and `tar` do.
fn change_keeping_time(path: &Path, bytes: &[u8]) {
    let before = fs::metadata(path).unwrap();
    assert_eq!(before.len(), bytes.len() as u64);
    fs::write(path, bytes).unwrap();
    let times = FileTimes::new().set_modified(before.modified().unwrap());
    File::options().append(true).open(path).unwrap().set_times(times).unwrap();
}

#[test]
fn a_changed_file_looks_changed() {
    let place = Place::new();
    let files = ["dir/inline", "dir/small", "large", "other"];
    let contents = |seed: &str, file: &str| {
        let len = match file {
            "dir/inline" => 10,
            "large" => 3 << 20,
            _ => 5000,
        };
        content::random(&format!("{seed}{file}"), len)
    };
    let tree = place.tree();
    for file in files {
        place.write(file, contents("", file));
    }
    git(&tree, &["init", "-q"]);
    git(&tree, &["add", "."]);
    git(&tree, &["commit", "-qm", "one"]);
    // An hour ago: git reads anew what has changed while it wrote its index.
    let time = FileTimes::new()
        .set_modified(std::time::SystemTime::now() - std::time::Duration::from_hours(1));
    for file in files {
        File::options().append(true).open(tree.join(file)).unwrap().set_times(time).unwrap();
    }
    place.import("base");
    let mounted = place.mount("base", &["--rw"]);
    assert_eq!(git(&place.mnt(), &["status", "--porcelain"]), "");
    // The index is git's memory of what `stat` has shown. It belongs to the next snapshot.
    fs::copy(mounted.path(".git/index"), tree.join(".git/index")).unwrap();
    let times = |mounted: &crate::place::Mounted<'_>| {
        files.map(|file| {
            let stat = fs::metadata(mounted.path(file)).unwrap();
            assert!(stat.ctime() <= stat.mtime(), "{file} was changed in the future");
            (stat.ctime(), stat.ctime_nsec(), stat.mtime(), stat.mtime_nsec())
        })
    };
    let before = times(&mounted);
    mounted.unmount();
    // The same snapshot, mounted again: git compares what `stat` shows and reads nothing.
    let mounted = place.mount("base", &["--rw"]);
    assert_eq!(times(&mounted), before);
    assert_eq!(git(&place.mnt(), &["diff-files", "--name-only"]), "");
    mounted.unmount();

    for file in ["dir/inline", "dir/small", "large"] {
        change_keeping_time(&tree.join(file), &contents("new", file));
    }
    place.import("base");
    let mounted = place.mount("base", &["--rw", "--scratch"]);
    let after = times(&mounted);
    for (at, file) in files.iter().enumerate() {
        let [before, after] = [before[at], after[at]];
        assert_eq!((before.2, before.3), (after.2, after.3), "{file}");
        // Whole seconds: git, as it is built usually, looks at nothing finer.
        assert_eq!(before.0 == after.0, *file == "other", "{file}");
    }
    assert_eq!(git(&place.mnt(), &["diff-files", "--name-only"]), "dir/inline\ndir/small\nlarge\n");
    let status = git(&place.mnt(), &["status", "--porcelain"]);
    assert_eq!(status, " M dir/inline\n M dir/small\n M large\n");
    mounted.unmount();

    // Other attributes look changed, too.
    fs::set_permissions(tree.join("other"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    place.import("base");
    let mounted = place.mount("base", &[]);
    assert_ne!(times(&mounted)[3].0, before[3].0);
    mounted.unmount();
}
