//! The command line: its JSON, its messages, its exit codes, its help.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;

use common::{Source, import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::scratch;
use inlay_testkit::tree::EveryKind;
use serde_json::Value;

const COMMANDS: [&str; 16] = [
    "import",
    "export",
    "mount",
    "umount",
    "mounts",
    "daemon",
    "ls",
    "cat",
    "stat",
    "tree",
    "snapshots",
    "show",
    "tag",
    "untag",
    "verify",
    "cache",
];

fn with_base() -> (Inlay, Source) {
    let source = Source::every_kind(EveryKind { entries: 5, large: 300_000 });
    let inlay = local();
    import(&inlay, &of("dir", &source.path()), "base");
    (inlay, source)
}

#[test]
fn every_command_explains_itself_with_examples() {
    let inlay = local();
    let help = inlay.succeed(["--help"]).unwrap().text();
    assert!(help.contains("Examples:"), "{help}");
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command}")), "{command} is not in {help}");
        let help = inlay.succeed([command, "--help"]).unwrap().text();
        let wanted = ["Example", "Usage: ", "--store", "--state", "--json"];
        for wanted in wanted.iter().filter(|_| command != "mounts") {
            assert!(help.contains(wanted), "{command} --help: no {wanted} in {help}");
        }
    }
}

#[test]
fn every_command_speaks_json() {
    let (inlay, source) = with_base();
    let scratch = scratch().unwrap();
    let mount = scratch.path().join("mnt").display().to_string();
    fs::create_dir(&mount).unwrap();
    let dir = of("dir", &scratch.path().join("exported"));
    let tar = of("tar", &scratch.path().join("exported.tar"));
    let layout = of("oci", &scratch.path().join("layout"));
    let source = of("dir", &source.path());
    let runs: &[&[&str]] = &[
        &["import", &source, "--name", "again"],
        &["snapshots"],
        &["show", "base"],
        &["ls", "base"],
        &["ls", "-R", "base:/names"],
        &["stat", "base:/sizes/text-257"],
        &["stat", "base:/special/disk"],
        &["tree", "base:/hard-links"],
        &["verify", "base"],
        &["cache", "status"],
        &["cache", "pin", "base"],
        &["cache", "unpin", "base"],
        &["cache", "verify"],
        &["cache", "prune", "--all"],
        &["tag", "base", "other"],
        &["untag", "other"],
        &["export", "base", &dir],
        &["export", "base", &tar],
        &["export", "base", &layout],
        &["mount", "base", &mount],
        &["mounts"],
        &["umount", &mount],
    ];
    for arguments in runs {
        let ran = inlay.succeed([&["--json"], *arguments].concat()).unwrap();
        let value: Value =
            serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        assert!(value.is_object() || value.is_array(), "{ran:?}");
    }
}

#[test]
fn what_is_looked_at_is_what_was_imported() {
    let (inlay, source) = with_base();
    let cat = inlay.succeed(["cat", "base:/sizes/text-4097"]).unwrap();
    assert_eq!(cat.stdout, fs::read(source.path().join("sizes/text-4097")).unwrap());
    let large = inlay.succeed(["cat", "base:/large/random-shifted"]).unwrap();
    assert_eq!(large.stdout, fs::read(source.path().join("large/random-shifted")).unwrap());

    let listed = inlay.succeed(["ls", "base:/sizes"]).unwrap().text();
    let mut expected: Vec<_> = fs::read_dir(source.path().join("sizes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    expected.sort();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);

    let stat = inlay.succeed(["stat", "--json", "base:/sizes/text-257"]).unwrap();
    let stat: Value = serde_json::from_slice(&stat.stdout).unwrap();
    assert_eq!(stat["size"], 257);
}

#[test]
fn failures_say_what_and_where_in_one_line() {
    let (inlay, _source) = with_base();
    let scratch = scratch().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    fs::write(path("file"), b"no archive, no layout").unwrap();
    let not_there = path("not-there");
    let cases: &[(&[&str], &str)] = &[
        (&["ls", "absent"], "absent"),
        (&["ls", "base:/absent/path"], "/absent/path"),
        (&["cat", "base:/sizes"], "/sizes"),
        (&["show", "img-ffffffff"], "img-ffffffff"),
        (&["import", "dir:/nowhere/at/all"], "/nowhere/at/all"),
        (&["import", &format!("tar:{}", path("file"))], &path("file")),
        (&["import", &format!("oci:{}", path("file"))], &path("file")),
        (&["import", &format!("docker-archive:{}", path("file"))], &path("file")),
        (&["export", "base", &format!("dir:{not_there}/a/b")], "not-there"),
        (&["mount", "base", &not_there], &not_there),
        (&["umount", "/proc"], "/proc"),
        (&["--store", "gopher://x", "snapshots"], "gopher"),
    ];
    for (arguments, named) in cases {
        let ran = inlay.fail(*arguments).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        assert!(ran.stderr.contains(named), "{named} is not named: {ran:?}");
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "more than one line: {ran:?}");
        assert!(ran.stdout.is_empty(), "{ran:?}");
    }
}

#[test]
fn wrong_words_have_an_exit_code_of_their_own() {
    let inlay = local();
    let cases: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["import"],
        &["import", "pigeon:post"],
        &["mount", "base"],
        &["ls", "--frobnicate", "base"],
        &["mount", "--scratch", "base", "/mnt"],
    ];
    for arguments in cases {
        let ran = inlay.fail(*arguments).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let (inlay, _source) = with_base();
    let program = env!("CARGO_BIN_EXE_inlay");
    let script = format!("{program} ls -R base | head -n 1; echo \"${{PIPESTATUS[0]}}\"");
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .env("INLAY_STATE", inlay.state())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.is_empty(), "{said}");
}

#[test]
fn names_are_moved_and_taken_away() {
    let (inlay, _source) = with_base();
    inlay.succeed(["tag", "base", "other"]).unwrap();
    let id = |name: &str| {
        let shown = inlay.succeed(["show", "--json", name]).unwrap();
        serde_json::from_slice::<Value>(&shown.stdout).unwrap()["id"].clone()
    };
    assert_eq!(id("base"), id("other"));
    let small = scratch().unwrap();
    let moved = import(&inlay, &of("dir", small.path()), "other");
    assert_eq!(id("other"), moved["id"]);
    assert_ne!(id("base"), id("other"));
    inlay.succeed(["untag", "other"]).unwrap();
    inlay.fail(["show", "other"]).unwrap();
}
