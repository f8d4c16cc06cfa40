//! The command line: its JSON, its messages, its exit codes, its help.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Source, import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::scratch;
use inlay_testkit::tree::EveryKind;
use serde_json::Value;

const COMMANDS: [&str; 20] = [
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
    "profile",
    "cache",
    "doctor",
    "completion",
    "version",
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
    let file = |name: &str| scratch.path().join(name).display().to_string();
    let (list, profile) = (file("list"), file("profile"));
    fs::write(&list, "/sizes\n/large/random-shifted\n/absent\n").unwrap();
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
        &["profile", "import", "--paths", "base", &list],
        &["profile", "show", "base"],
        &["profile", "export", "base", &profile],
        &["profile", "export", "--paths", "base", &list],
        &["profile", "import", "--label", "other", "base", &profile],
        &["profile", "drop", "base"],
        &["profile", "drop", "--all", "base"],
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
        &["version"],
    ];
    for arguments in runs {
        let ran = inlay.succeed([&["--json"], *arguments].concat()).unwrap();
        let value: Value =
            serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        assert!(value.is_object() || value.is_array(), "{ran:?}");
    }
}

#[test]
fn cat_ls_and_stat_show_the_imported_files() {
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
fn failures_name_the_action_and_the_object_in_one_line() {
    let (inlay, _source) = with_base();
    let scratch = scratch().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    fs::write(path("file"), b"no archive, no layout").unwrap();
    let not_there = path("not-there");
    fs::write(path("paths"), "/absent\n").unwrap();
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
        (&["profile", "show", "base"], "profile import --paths"),
        (&["profile", "export", "--label", "x", "base", &not_there], "'x'"),
        (&["profile", "drop", "base"], "'default'"),
        (&["profile", "import", "base", &not_there], &not_there),
        (&["profile", "import", "base", &path("file")], "not an inlay profile"),
        (&["profile", "import", "--paths", "base", &path("paths")], "1 are not there"),
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
        &["profile", "show", "--label", "../x", "base"],
        &["profile", "drop", "--all", "--label", "x", "base"],
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
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("INLAY_STATE", inlay.state())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.is_empty(), "{said}");
}

#[test]
fn a_standard_error_that_takes_nothing_is_no_error() {
    let (inlay, source) = with_base();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_inlay"))
        .args(["import", "--name", "again"])
        .arg(of("dir", &source.path()))
        .env("INLAY_STATE", inlay.state())
        .stderr(full)
        .output()
        .unwrap();
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
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

/// What a command answers with `--json`.
fn json(inlay: &Inlay, words: &[&str]) -> Value {
    let ran = inlay.succeed([&["--json"], words].concat()).unwrap();
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[test]
fn a_profile_is_shown_in_order_and_comes_back() {
    let (inlay, _source) = with_base();
    let scratch = scratch().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    fs::write(path("list"), "/large/random-shifted\n/sizes/text-4097\n/nowhere\n").unwrap();
    let id = json(&inlay, &["show", "base"])["id"].clone();
    let made = json(&inlay, &["profile", "import", "--paths", "base", &path("list")]);
    assert_eq!((&made["snapshot"], &made["missing"]), (&id, &1.into()));
    assert_eq!(made["label"], "default");

    let shown = json(&inlay, &["profile", "show", "base"]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let known =
        ["groups", "label", "raw_bytes", "runs", "snapshot", "stored_bytes", "touched_bytes"];
    assert_eq!(keys(&shown), known);
    let groups = shown["groups"].as_array().unwrap();
    assert_eq!(made["groups"], groups.len());
    let known = ["at_ms", "files", "group", "raw_len", "seen", "stored_len", "touched_len"];
    assert_eq!(keys(&groups[0]), known);
    assert!(groups.iter().all(|group| group["files"].as_array().unwrap().len() <= 3));
    let files = |place: usize| groups[place]["files"].to_string();
    assert!(files(0).contains("/large/random-shifted"), "{shown}");
    assert!(files(groups.len() - 1).contains("/sizes/"), "{shown}");
    let sum = |key: &str| groups.iter().map(|group| group[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(shown["stored_bytes"], sum("stored_len"));
    assert_eq!(shown["raw_bytes"], sum("raw_len"));
    assert_eq!(shown["touched_bytes"], sum("touched_len"));
    // Of the paths of a list, everything is wanted.
    assert_eq!(sum("touched_len"), sum("raw_len"));

    let text = inlay.succeed(["profile", "show", "base"]).unwrap().text();
    assert_eq!(text.lines().count(), groups.len() + 2, "{text}");
    assert!(text.contains("/large/random-shifted"), "{text}");

    inlay.succeed(["profile", "export", "base", &path("kept")]).unwrap();
    let bytes = inlay.succeed(["profile", "export", "base", "-"]).unwrap().stdout;
    assert_eq!(bytes, fs::read(path("kept")).unwrap());
    assert_eq!(json(&inlay, &["profile", "drop", "base"])["dropped"][0], "default");
    inlay.fail(["profile", "show", "base"]).unwrap();
    inlay.succeed(["profile", "import", "--label", "app", "base", &path("kept")]).unwrap();
    let ran = inlay.fail(["profile", "show", "base"]).unwrap();
    assert!(ran.stderr.contains("but there are: app"), "{ran:?}");
    let again = json(&inlay, &["profile", "show", "--label", "app", "base"]);
    assert_eq!(again["groups"], shown["groups"]);
}

#[test]
fn a_profile_of_another_snapshot_or_a_damaged_one_is_refused() {
    let (inlay, _source) = with_base();
    let scratch = scratch().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    fs::write(scratch.path().join("large"), vec![7; 10_000]).unwrap();
    let other = import(&inlay, &of("dir", scratch.path()), "other");
    fs::write(path("list"), "/\n").unwrap();
    inlay.succeed(["profile", "import", "--paths", "base", &path("list")]).unwrap();
    inlay.succeed(["profile", "export", "base", &path("profile")]).unwrap();
    let ran = inlay.fail(["profile", "import", "other", &path("profile")]).unwrap();
    assert!(ran.stderr.contains(other["id"].as_str().unwrap()), "{ran:?}");
    assert!(ran.stderr.contains("profile export --paths"), "{ran:?}");

    let id = json(&inlay, &["show", "base"])["id"].as_str().unwrap().to_owned();
    let stored = inlay.state().join("store/profiles").join(&id).join("default.profile");
    let mut bytes = fs::read(&stored).unwrap();
    bytes[130] ^= 1;
    fs::write(&stored, &bytes).unwrap();
    for words in [&["profile", "show", "base"][..], &["profile", "export", "base", "-"]] {
        let ran = inlay.fail(words).unwrap();
        assert!(ran.stderr.contains("default.profile: damaged"), "{ran:?}");
        assert!(ran.stdout.is_empty(), "{ran:?}");
    }
    inlay.succeed(["profile", "drop", "base"]).unwrap();
    assert!(!stored.exists());
}

#[test]
fn the_version_is_one_line_or_all_that_is_known() {
    let inlay = local();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(inlay.succeed(["-V"]).unwrap().text(), format!("inlay {version}\n"));
    let text = inlay.succeed(["version"]).unwrap().text();
    assert_eq!(inlay.succeed(["--version"]).unwrap().text(), text);
    let known = json(&inlay, &["version"]);
    assert_eq!(known["version"], version);
    let commit = known["commit"].as_str().unwrap();
    assert!(text.starts_with(&format!("inlay {version}\ncommit    {commit}\n")), "{text}");
    let formats: Vec<_> = known["formats"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    for name in ["snapshot index", "store records", "sandbox records", "mount records", "ledger"] {
        assert!(formats.contains(&name) && text.contains(name), "{name}: {text}");
    }
    let inlay = inlay.with_environment([("INLAY_WITHOUT", "statmount")]);
    let features = json(&inlay, &["version"])["features"].as_array().unwrap().clone();
    let enabled =
        |name: &str| features.iter().find(|it| it["name"] == name).unwrap()["enabled"].clone();
    assert_eq!((enabled("statmount"), enabled("fuse-resend")), (false.into(), true.into()));
}

#[test]
fn the_commit_is_that_of_the_checkout() {
    let git = |words: &[&str]| {
        let mut git = Command::new("git");
        let output = git.current_dir(env!("CARGO_MANIFEST_DIR")).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let is_checkout = git(&["rev-parse", "--show-toplevel"])
        .is_some_and(|top| fs::canonicalize(top).unwrap() == Path::new(env!("CARGO_MANIFEST_DIR")));
    let wanted = match option_env!("INLAY_COMMIT").filter(|given| !given.is_empty()) {
        Some(given) => given.to_owned(),
        None if is_checkout => git(&["rev-parse", "HEAD"]).unwrap(),
        None => "unknown".to_owned(),
    };
    assert_eq!(json(&local(), &["version"])["commit"], wanted);
}

/// What the shell's script is told for the words of a command line, the last of them unfinished.
fn completed(inlay: &Inlay, words: &[&str]) -> Vec<String> {
    let mut command = inlay.command();
    command.env("INLAY_COMPLETE", "bash").env("_CLAP_IFS", "\n");
    command.env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    let output = command.args(["--", "inlay"]).args(words).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn command_lines_are_completed() {
    let (inlay, _source) = with_base();
    for shell in ["bash", "zsh", "fish"] {
        let script = inlay.succeed(["completion", shell]).unwrap().text();
        assert!(script.contains("INLAY_COMPLETE") && script.contains(shell), "{shell}: {script}");
    }
    let commands = completed(&inlay, &[""]);
    for command in COMMANDS {
        assert!(commands.iter().any(|offered| offered == command), "{command}: {commands:?}");
    }
    for hidden in ["keeper", "monitor", "man"] {
        assert!(!commands.iter().any(|offered| offered == hidden), "{hidden}: {commands:?}");
    }
    assert_eq!(completed(&inlay, &["mount", "ba"]), ["base"]);
    assert_eq!(completed(&inlay, &["mount", "x"]), [""; 0]);
    assert_eq!(completed(&inlay, &["cat", "base:/x", "ba"]), ["base:/"]);
    // Another state has no store, and gets none by being asked.
    let scratch = scratch().unwrap();
    let other = scratch.path().join("state").display().to_string();
    assert_eq!(completed(&inlay, &["--state", &other, "mount", "ba"]), [""; 0]);
    assert!(!Path::new(&other).exists());
    let store = inlay.state().join("store").display().to_string();
    assert_eq!(completed(&inlay, &["--state", &other, "--store", &store, "mount", "ba"]), ["base"]);
    // The record of a sandbox says its name.
    let dir = inlay.state().join("sandboxes/sb-0123456789ab");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("sandbox.json"), r#"{"version": 1, "name": "work"}"#).unwrap();
    assert_eq!(completed(&inlay, &["exec", "w"]), ["work"]);
    assert_eq!(completed(&inlay, &["mount", "base", "wo"]), ["work:/"]);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_store_that_hangs_does_not_hold_up_the_completion() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = format!("s3://bucket/{}", silent.local_addr().unwrap().port());
    let inlay = local().with_environment([
        ("AWS_ACCESS_KEY_ID", "a".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "b".to_owned()),
        ("AWS_ENDPOINT_URL", format!("http://{}", silent.local_addr().unwrap())),
        ("INLAY_STORE", store),
    ]);
    let begun = Instant::now();
    assert_eq!(completed(&inlay, &["mount", "ba"]), [""; 0]);
    // Half a second, and what a busy machine needs beside; without a deadline it is minutes.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn bash_completes_with_the_script() {
    let (inlay, _source) = with_base();
    let program = Path::new(env!("CARGO_BIN_EXE_inlay")).parent().unwrap();
    let path = std::env::join_paths(
        std::iter::once(program.to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let script = "source <(inlay completion bash); COMP_WORDS=(inlay mount ba); COMP_CWORD=2; \
        COMP_TYPE=9; _clap_complete_inlay inlay ba mount; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script]).env("PATH", path.unwrap());
    let output = bash.env("INLAY_STATE", inlay.state()).env_remove("INLAY_STORE").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "base\n", "{output:?}");
}

#[test]
fn every_command_has_a_manual_page() {
    let inlay = local();
    let scratch = scratch().unwrap();
    let dir = scratch.path().join("man");
    inlay.succeed(["man", &dir.display().to_string()]).unwrap();
    for command in COMMANDS {
        let page = fs::read_to_string(dir.join(format!("inlay-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    assert!(dir.join("inlay.1").exists() && dir.join("inlay-sandbox-create.1").exists());
    assert!(!dir.join("inlay-keeper.1").exists());
    fs::write(scratch.path().join("file"), "").unwrap();
    let ran = inlay.fail(["man", &scratch.path().join("file/man").display().to_string()]).unwrap();
    assert!(ran.stderr.starts_with("inlay: can't write "), "{ran:?}");
}
