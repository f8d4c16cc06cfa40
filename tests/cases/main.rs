//! Reports of users of other sandbox software, as small scripts with an oracle each.
//!
//! `sandboxes/` has one script for each, `long/` those that need more than the fixtures have
//! (`scripts/cases`). They need root, /dev/fuse, runc or crun, and target/fixtures/debian-python.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use inlay_testkit::cli::Inlay;
use inlay_testkit::rootfs::{Fixture, find};
use inlay_testkit::scratch;
use rustix::process::{Pid, Signal, kill_process_group};

/// Cases that run at the same time: most of each is waiting.
const AT_A_TIME: usize = 3;
/// How long a case may take; the machine may be busy with a build.
const CASE_WITHIN: Duration = Duration::from_mins(6);
/// How long one that did not end may take to remove its sandboxes.
const CLEARED_WITHIN: Duration = Duration::from_mins(1);

/// A host whose store has the base of the cases.
fn host(base: Fixture) -> Inlay {
    let inlay = Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap();
    let root = find(base).unwrap();
    let source = format!("dir:{}", root.display());
    inlay.succeed(["import", &source, "--name", "base", "--kind", "image"]).unwrap();
    inlay
}

/// The scripts of a directory, in the order of their names.
fn scripts(dir: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(dir);
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_script = |path: &PathBuf| path.extension().is_some_and(|name| name == "sh");
    let mut all: Vec<_> = entries.filter(is_script).collect();
    all.sort();
    all
}

/// Runs a case. `Err`: all that it printed.
fn run(inlay: &Inlay, script: &Path) -> Result<(), String> {
    let dir = scratch().unwrap();
    let log = dir.path().join("log");
    let out = File::create(&log).unwrap();
    let mut command = inlay.command();
    let program = command.get_program().to_owned();
    let mut child = Command::new(script)
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("INLAY", program)
        .env("BASE", "base")
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        // Its commands end with it.
        .process_group(0)
        .spawn()
        .unwrap();
    command.env_clear();
    let deadline = Instant::now() + CASE_WITHIN;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.to_string(),
            None if Instant::now() > deadline => {
                end(&mut child);
                break "it did not end in time".into();
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let name = script.file_stem().unwrap().to_string_lossy();
    let last = text
        .lines()
        .rfind(|line| ["PASS", "FAIL", "SKIP"].iter().any(|word| line.starts_with(word)));
    println!("{name}: {}", last.unwrap_or(&status));
    // A case that says nothing has not passed.
    let passed = status == "exit status: 0" && last.is_some_and(|line| line.starts_with("PASS"));
    if passed { Ok(()) } else { Err(format!("{name}: {status}\n{text}")) }
}

/// Ends a case and its commands: first so that it can remove its sandboxes, then by force.
fn end(child: &mut Child) {
    let group = Pid::from_child(child);
    kill_process_group(group, Signal::TERM).unwrap();
    let deadline = Instant::now() + CLEARED_WITHIN;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    // Also what it has left behind, if anything.
    let _ = kill_process_group(group, Signal::KILL);
    child.wait().unwrap();
}

fn all_pass(dir: &str, base: Fixture) {
    let (inlay, scripts, next) = (host(base), scripts(dir), AtomicUsize::new(0));
    assert!(!scripts.is_empty());
    let failed: Vec<String> = thread::scope(|scope| {
        let lane = || {
            let mut failed = Vec::new();
            while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                failed.extend(run(&inlay, script).err());
            }
            failed
        };
        let lanes: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    let stopped = inlay.run(["daemon", "stop", "--force"]).unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(stopped.status.success(), "{stopped:?}");
}

#[test]
fn sandboxes_behave_as_their_users_expect() {
    all_pass("sandboxes", Fixture::Directory);
}

#[test]
#[ignore = "needs a root file system with PostgreSQL: scripts/cases"]
fn databases_survive_snapshots_under_load() {
    all_pass("long", Fixture::Postgres);
}
