//! The command line: answers for machines, exit codes, looking without mounting.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::place::{Place, source};

#[test]
fn every_answer_can_be_json() {
    let place = Place::with(&[("dir/file", &[b'x'; 1000])]);
    let list = place.path("list");
    fs::write(&list, "/dir\n").unwrap();
    let list = list.to_str().unwrap();
    let (mnt, tree) = (place.mnt(), source("dir", &place.tree()));
    let mnt = mnt.to_str().unwrap();
    let target = source("dir", &place.path("exported"));
    for words in [
        &["import", &tree, "--name", "again"][..],
        &["export", "base", &target],
        &["snapshots"],
        &["show", "base"],
        &["ls", "base:/dir"],
        &["stat", "base:/dir/file"],
        &["tree", "base"],
        &["tag", "base", "other"],
        &["untag", "other"],
        &["verify", "base"],
        &["profile", "import", "--paths", "base", list],
        &["profile", "show", "base"],
        &["profile", "drop", "base"],
        &["mount", "base", mnt],
        &["mounts"],
        &["umount", mnt],
    ] {
        let ran = place.run(words.iter().chain(&["--json"]));
        let value: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert!(value.is_object() || value.is_array(), "{words:?}: {value}");
        assert_eq!(ran.stderr, "", "{words:?}");
    }
    // A file's contents are what they are.
    assert_eq!(place.run(["cat", "base:/dir/file", "--json"]).stdout, [b'x'; 1000]);
}

#[test]
fn exit_codes_tell_how_it_went() {
    let place = Place::with(&[("file", b"x")]);
    let code = |words: &[&str]| {
        let ran = place.inlay.run(words).unwrap();
        (ran.status.code(), ran.stderr.lines().count(), ran.stdout.is_empty())
    };
    assert_eq!(code(&["ls", "base"]), (Some(0), 0, false));
    for words in [
        &["ls", "nobody"][..],
        &["cat", "base:/absent"],
        &["cat", "base:/"],
        &["untag", "nobody"],
        &["umount", "/"],
        &["mount", "base", "/absent"],
        &["import", "dir:/absent"],
    ] {
        assert_eq!(code(words), (Some(1), 1, true), "{words:?}: one line on standard error");
    }
    for words in [
        &["sing"][..],
        &["ls"],
        &["import", "zip:file"],
        &["mount", "--scratch", "base", "/mnt"],
        &["umount", "--lazy", "--discard", "/mnt"],
        &["--log", "no=such=level", "ls", "base"],
    ] {
        let (status, lines, silent) = code(words);
        assert_eq!((status, silent), (Some(2), true), "{words:?}");
        assert!(lines > 0, "{words:?}");
    }
}

#[test]
fn looking_inside_needs_no_mount() {
    let place = Place::new();
    place.write("dir/file", "contents");
    symlink("/dir/file", place.tree().join("absolute")).unwrap();
    symlink("../../../../dir", place.tree().join("dir/up")).unwrap();
    place.import("base");
    for path in ["/dir/file", "/absolute", "/dir/up/up/file"] {
        assert_eq!(place.cat(&format!("base:{path}")), b"contents", "{path}");
    }
    assert_eq!(place.run(["ls", "-R", "base"]).text(), "absolute\ndir\ndir/file\ndir/up\n");
    let stat = place.json(["stat", "base:/dir/file"]);
    assert_eq!((&stat["size"], &stat["nlink"]), (&8.into(), &1.into()));
    assert!(place.run(["tree", "base"]).text().contains("── file\n"));
    assert!(fs::read_dir(place.mnt()).unwrap().next().is_none());
}

#[test]
fn an_order_is_carried_over_by_paths() {
    let place = Place::new();
    let file = |letter: u8| vec![letter; 300_000];
    for letter in b'a'..=b'd' {
        place.write(&char::from(letter).to_string(), file(letter));
    }
    place.import("one");
    // What belongs to the next version, and what it does not have any more.
    place.write("b", file(b'B'));
    fs::remove_file(place.tree().join("c")).unwrap();
    place.import("two");
    let list = place.path("list");
    fs::write(&list, "/d\n/c\n/b\n").unwrap();
    let list = list.to_str().unwrap();
    place.run(["profile", "import", "--paths", "one", list]);
    let paths = place.run(["profile", "export", "--paths", "one", "-"]).text();
    assert_eq!(paths, "/d\n/c\n/b\n");
    place.run(["profile", "export", "--paths", "one", list]);
    let answer = place.json(["profile", "import", "--paths", "two", list]);
    assert_eq!(answer["missing"], 1);
    let paths = place.run(["profile", "export", "--paths", "two", "-"]).text();
    assert_eq!(paths, "/d\n/b\n");
    let groups = place.json(["profile", "show", "two"])["groups"].clone();
    assert_eq!(groups[0]["files"], serde_json::json!(["/d"]));
}
