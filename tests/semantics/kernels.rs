//! Promises about kernels that lack what newer ones have.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use inlay_testkit::cli::Inlay;
use inlay_testkit::{content, scratch, wait};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::boxes::Boxes;

/// All that `inlay doctor` can find degraded, as on Linux 5.15.
const ALL: &str = "fuse-passthrough,fuse-resend,fuse-idmap,statmount,overlay-descriptors";

fn local() -> Inlay {
    Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap()
}

fn old() -> Inlay {
    local().with_environment([("INLAY_WITHOUT", ALL)])
}

fn checks(inlay: &Inlay) -> Vec<Value> {
    let report = inlay.succeed(["doctor", "--json"]).unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    report["checks"].as_array().unwrap().clone()
}

#[test]
fn doctor_names_the_fallbacks_for_missing_features() {
    let inlay = old();
    for name in ALL.split(',') {
        let checks = checks(&inlay);
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        assert_eq!(check["health"], "degraded");
        assert!(!check["fix"].as_str().unwrap().is_empty());
    }
    let wrong = local().with_environment([("INLAY_WITHOUT", "fuse-nothing")]);
    let refused = wrong.run(["doctor"]).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("fuse-nothing"), "{refused:?}");
}

#[test]
fn doctor_fails_only_without_a_required_feature() {
    let inlay = local();
    assert!(checks(&inlay).iter().any(|check| check["name"] == "fuse" && check["health"] == "ok"));
    // In a mount namespace of its own, without the device.
    let doctor = inlay.command();
    let mut hidden = Command::new("unshare");
    hidden.args(["-m", "sh", "-c", "mount --bind /dev/null /dev/fuse && exec \"$0\" doctor"]);
    hidden.arg(doctor.get_program());
    for (name, value) in doctor.get_envs() {
        match value {
            Some(value) => hidden.env(name, value),
            None => hidden.env_remove(name),
        };
    }
    let out = hidden.output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("missing   fuse ")).unwrap();
    assert!(line.contains("/dev/fuse"), "{line}");
}

/// The paths of layers have what the old ways of naming them give a meaning to.
#[test]
fn changes_are_kept_below_any_path_on_older_kernels() {
    let inlay = old();
    let dir = scratch().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "one").unwrap();
    let source = format!("dir:{}", tree.display());
    inlay.succeed(["import", &source, "--name", "base"]).unwrap();
    for odd in ["a,b", "a:b", "a\\b", &"long-".repeat(45)] {
        let upper = dir.path().join(odd);
        fs::create_dir_all(&upper).unwrap();
        let at = dir.path().join("at");
        fs::create_dir_all(&at).unwrap();
        let place = [upper.to_str().unwrap(), at.to_str().unwrap()];
        inlay.succeed(["mount", "--rw", "--upper", place[0], "base", place[1]]).unwrap();
        assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "one");
        fs::write(at.join("file"), odd).unwrap();
        inlay.succeed(["umount", place[1]]).unwrap();
        inlay.succeed(["mount", "--rw", "--upper", place[0], "base", place[1]]).unwrap();
        assert_eq!(fs::read_to_string(at.join("file")).unwrap(), odd);
        inlay.succeed(["umount", "--discard", place[1]]).unwrap();
    }
    inlay.wait_until_quiet().unwrap();
}

#[test]
fn features_missing_from_older_kernels_have_fallbacks() {
    let host = Boxes::new(old());
    fs::create_dir(host.path("big")).unwrap();
    for number in 0..40 {
        let len = if number % 10 == 0 { 3 << 20 } else { 9_000 };
        let bytes = content::random(&number.to_string(), len);
        fs::write(host.path("big").join(number.to_string()), bytes).unwrap();
    }
    host.import("big", "big", "directory");
    host.create("a", &[]);
    host.succeed(&["mount", "big", "a:/big"]);
    let at = host.inlay.mount("big", &[]).unwrap();
    let (enough, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for first in 0..3 {
            let (at, host, enough, rounds) = (at.path(), &host, &enough, &rounds);
            scope.spawn(move || {
                let mut number = first;
                while !enough.load(Relaxed) {
                    let name = (number % 40).to_string();
                    let have = fs::File::open(at.join(&name)).unwrap();
                    rustix::fs::fadvise(&have, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                    drop(have);
                    let wanted = fs::read(host.path("big").join(&name)).unwrap();
                    assert!(fs::read(at.join(&name)).unwrap() == wanted, "{name}");
                    // A name that the kernel has not been asked for: a request each time.
                    fs::metadata(at.join(format!("absent-{number}"))).unwrap_err();
                    rounds.fetch_add(1, Relaxed);
                    number += 3;
                }
            });
        }
        for _ in 0..6 {
            let before = rounds.load(Relaxed);
            wait::until("readers to go on", || rounds.load(Relaxed) >= before + 10);
            let (daemon, _) = host.inlay.daemon_pids().unwrap();
            kill_process(daemon, Signal::KILL).unwrap();
            wait::until("another daemon", || {
                host.inlay.daemon_pids().is_ok_and(|(next, _)| next != daemon)
            });
        }
        enough.store(true, Relaxed);
    });
    host.sh("a", "echo changed >/big/1; echo mine >/file");
    let id = host.snapshot("a:/big");
    assert_eq!(host.cat(&format!("{id}:/1")), "changed\n");
    assert!(host.cat(&format!("{id}:/2")).as_bytes() != b"");
    host.succeed(&["umount", "--discard", "a:/big"]);
    assert_eq!(host.sh("a", "ls /big | wc -l").trim(), "0");
    at.unmount().unwrap();
    host.succeed(&["sandbox", "rm", "--force", "a"]);
    host.inlay.wait_until_quiet().unwrap();
}
