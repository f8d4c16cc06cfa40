//! Copies into and out of sandboxes, and what programs in them may leave behind.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::thread;

use inlay_testkit::compare::Comparison;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags, mkdirat, open, openat, setxattr,
    utimensat,
};

use crate::place::Place;
use crate::sandboxes::Host;

fn set_time(path: &Path, secs: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn copies_keep_contents_and_attributes() {
    let host = Host::new();
    host.create("a", &[]);
    let tree = host.0.path("tree");
    fs::create_dir_all(tree.join("dir")).unwrap();
    fs::write(tree.join("dir/file"), "here").unwrap();
    fs::hard_link(tree.join("dir/file"), tree.join("again")).unwrap();
    symlink("dir/file", tree.join("link")).unwrap();
    setxattr(tree.join("again"), "user.note", b"two\nlines", XattrFlags::empty()).unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(&[1; 4096], 512 << 10).unwrap();
    for (at, name) in (1_000_000_000..).zip(["link", "sparse", "dir/file", "dir", ""]) {
        set_time(&tree.join(name), at);
    }
    let (out, archive) = (host.0.path("out"), host.0.path("archive"));
    host.0.run(["cp", "--archive", tree.to_str().unwrap(), "a:/copy"]);
    host.0.run(["cp", "--archive", "a:/copy", out.to_str().unwrap()]);
    // A sandbox's own file system may give holes other borders.
    let compared = Comparison::default().holes(inlay_testkit::compare::Holes::Ignore);
    compared.run(&tree, &out).unwrap();
    assert!(fs::metadata(out.join("sparse")).unwrap().blocks() < 1024);
    // A file that does not tell its size is copied with its contents.
    host.0.run(["cp", "a:/proc/cpuinfo", archive.to_str().unwrap()]);
    assert_eq!(fs::read(&archive).unwrap(), host.sh("a", "cat /proc/cpuinfo").into_bytes());
    // Rights to run as another are not carried to this host unless they are wanted.
    host.sh("a", "cp /bin/busybox /set; chmod 6755 /set");
    let set = host.0.path("set");
    let mode = |words: &[&str]| {
        let words = [&["cp"], words, &["a:/set", set.to_str().unwrap()]].concat();
        host.0.run(words.as_slice());
        fs::metadata(&set).unwrap().mode() & 0o7777
    };
    assert_eq!((mode(&[]), mode(&["--archive"])), (0o755, 0o6755));
}

#[test]
fn copies_at_the_same_time_do_not_mix() {
    let host = Host::new();
    host.create("a", &[]);
    host.sh("a", "mkdir /into");
    let sources: Vec<_> = (0..8u8)
        .map(|client| {
            let from = host.0.path(&format!("from{client}"));
            fs::create_dir(&from).unwrap();
            fs::write(from.join(format!("own{client}")), vec![b'0' + client; 300_000]).unwrap();
            fs::write(from.join("shared"), vec![b'0' + client; 300_000]).unwrap();
            format!("{}/.", from.display())
        })
        .collect();
    thread::scope(|scope| {
        for from in &sources {
            scope.spawn(|| host.0.run(["cp", from, "a:/into"]));
        }
    });
    let out = host.0.path("out");
    host.0.run(["cp", "a:/into", out.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 9);
    for client in 0..8u8 {
        let own = fs::read(out.join(format!("own{client}"))).unwrap();
        assert!(own == vec![b'0' + client; 300_000], "{client}");
    }
    let shared = fs::read(out.join("shared")).unwrap();
    assert!(shared.len() == 300_000 && shared.iter().all(|byte| *byte == shared[0]));
}

/// Nests directories in a directory that a sandbox sees.
fn nest(host: &Host, path: &str, levels: usize) {
    let inspected = host.0.json(["sandbox", "inspect", "a"]);
    let root = format!("/proc/{}/root{path}", inspected["pid"]);
    let mut at: OwnedFd = open(root, OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
    }
}

#[test]
fn a_tree_of_any_depth_is_thrown_away() {
    let host = Host::new();
    host.create("a", &[]);
    host.0.run(["mount", "empty", "a:/work"]);
    let daemon = host.0.inlay.daemon_pids().unwrap();
    // More than a process may have files open, unless it asks for more.
    nest(&host, "/work", 1200);
    host.0.run(["umount", "--discard", "a:/work"]);
    host.0.run(["mount", "empty", "a:/work"]);
    assert_eq!(host.sh("a", "ls /work"), "");
    assert_eq!(host.0.inlay.daemon_pids().unwrap(), daemon);
    nest(&host, "/etc", 1200);
    host.0.run(["sandbox", "rm", "--force", "a"]);
    assert_eq!(host.0.json(["sandbox", "ls"]), serde_json::json!([]));
}

#[test]
fn names_do_not_act_on_a_terminal() {
    let place = Place::new();
    let evil = "a\x1b[2J\nERROR forged\u{202e}";
    place.write(evil, "x");
    place.import("base");
    // In a pipe, names are what they are.
    assert_eq!(place.run(["ls", "base"]).text(), format!("{evil}\n"));
    assert_eq!(place.json(["ls", "base"])[0]["path"], evil);
    let shown = "a\\u{1b}[2J\\nERROR forged\\u{202e}";
    assert!(place.run(["tree", "base"]).text().ends_with(&format!("── {shown}\n")));
    let refused = place.refused(["cat", &format!("base:/{evil}/below")]);
    assert!(refused.contains(shown) && refused.trim_end().lines().count() == 1, "{refused}");
}
