//! Compares copies of random trees with those of GNU cp and tar.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use inlay_testkit::compare::{Comparison, Holes as CompareHoles};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, utimensat};
use tempfile::TempDir;

use super::*;

/// Creates a tree of some dozens of objects of all kinds that a copy keeps.
fn random_tree(root: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    fs::create_dir(root).unwrap();
    let mut dirs = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut all = vec![root.to_owned()];
    for number in 0..random.usize(20..80) {
        let dir = random.choice(&dirs).unwrap().clone();
        let odd = ["", " ü", "\n", "=%", "\\", "\u{202e}"];
        let name =
            format!("{number}{}{}", random.choice(odd).unwrap(), "x".repeat(random.usize(0..120)));
        let path = dir.join(name);
        match random.u8(0..10) {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                dirs.push(path.clone());
            }
            3 => {
                let target = format!("../{number}{}", "t".repeat(random.usize(0..200)));
                symlink(target, &path).unwrap();
            }
            4 => fifo(&path),
            5 if !files.is_empty() => {
                fs::hard_link(random.choice(&files).unwrap(), &path).unwrap();
                continue;
            }
            _ => {
                let file = File::create(&path).unwrap();
                for _ in 0..random.usize(0..4) {
                    let bytes = vec![random.u8(..); random.usize(0..9000)];
                    file.write_all_at(&bytes, random.u64(0..300_000)).unwrap();
                }
                files.push(path.clone());
            }
        }
        all.push(path);
    }
    // Deepest first, so that later changes do not affect times already set.
    for path in all.iter().rev() {
        let link = path.symlink_metadata().unwrap().is_symlink();
        lchown(path, Some(random.u32(0..70_000)), Some(random.u32(0..3_000_000))).unwrap();
        if !link {
            let mode = random.u32(0..0o10000);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            if random.bool()
                && !path.symlink_metadata().unwrap().permissions().mode() & 0o010_000 != 0
            {
                let value: Vec<u8> = (0..random.usize(0..200)).map(|_| random.u8(..)).collect();
                // FIFOs do not support it.
                setxattr(path, "user.a=%b", &value, XattrFlags::empty()).ok();
            }
        }
        let mtime = Timespec {
            tv_sec: random.i64(-1000..5_000_000_000),
            tv_nsec: random.i64(0..1_000_000_000),
        };
        let times = Timestamps { last_access: mtime, last_modification: mtime };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn same(left: &Path, right: &Path, holes: CompareHoles, context: &str) {
    if let Err(differences) = Comparison::default().holes(holes).run(left, right) {
        panic!("{context}: {differences:?}");
    }
}

fn tar(words: &[&str], dir: &Path, input: &[u8]) -> Vec<u8> {
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=no-timestamp"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = tar.stdin.take().unwrap();
    let written = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        tar.wait_with_output().unwrap()
    });
    assert!(written.status.success());
    written.stdout
}

#[test]
fn random_trees_are_copied_as_cp_and_tar_copy_them() {
    for seed in 0..12 {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        random_tree(&at("tree"), seed);
        let cp = Command::new("cp").arg("-a").arg(at("tree")).arg(at("cp")).status().unwrap();
        assert!(cp.success());
        let (_, bytes) = packed(dir.path(), "/tree");
        let made = unpacked_as(dir.path(), "/copy", &bytes, ALL).unwrap();
        assert_eq!((made.left_out, made.attributes_left_out), (0, 0));
        same(&at("tree"), &at("copy"), CompareHoles::Compare, "a copy");
        same(&at("cp"), &at("copy"), CompareHoles::Ignore, "a copy and that of cp");

        // Copying onto an existing tree changes only the times of its directories.
        unpacked_as(dir.path(), "/copy", &[], ALL).unwrap_err();
        fs::rename(at("copy"), at("tree2")).unwrap();
        fs::create_dir(at("twice")).unwrap();
        for _ in 0..2 {
            unpacked_as(dir.path(), "/twice", &bytes, ALL).unwrap();
            same(&at("tree"), &at("twice/tree"), CompareHoles::Compare, "a copy onto a copy");
        }

        for holes in [Holes::Kept, Holes::Filled] {
            let mut bytes = Vec::new();
            pack(&Root::open(dir.path()).unwrap(), Path::new("/tree"), holes, &mut bytes).unwrap();
            let to = at(&format!("{holes:?}"));
            fs::create_dir(&to).unwrap();
            tar(&["-xpf", "-"], &to, &bytes);
            same(&at("tree"), &to.join("tree"), CompareHoles::Ignore, "what tar reads");
        }
        let bytes = tar(&["-cSf", "-", "--format=posix", "tree"], dir.path(), &[]);
        fs::create_dir(at("tar")).unwrap();
        unpacked_as(dir.path(), "/tar", &bytes, ALL).unwrap();
        same(&at("tree"), &at("tar/tree"), CompareHoles::Ignore, "what tar writes");
    }
}
