//! Processes that are killed, or that fail, at every step that `inject::Step` lists: nothing is left
//! behind, nothing is lost, nothing is seen half. They need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod boxes;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/http.rs"]
mod http;
mod others;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{import, local, of, snapshots};
use inlay_base::inject::{Scene, Step};
use inlay_testkit::cli::{Inlay, RUN_WITHIN};
use inlay_testkit::output::output;
use inlay_testkit::scratch;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host where one step goes wrong, once.
struct Host {
    inlay: Inlay,
    step: Step,
    dir: TempDir,
}

impl Host {
    fn new(step: Step) -> Self {
        let host = Self { inlay: local(), step, dir: scratch().unwrap() };
        fs::create_dir(host.path("tree")).unwrap();
        fs::write(host.path("tree/file"), "x").unwrap();
        fs::create_dir(host.path("mnt")).unwrap();
        host
    }

    fn with_base(step: Step) -> Self {
        let host = Self::new(step);
        import(&host.inlay, &of("dir", &host.path("tree")), "base");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A command, and what it starts, with this fault ahead of it.
    fn faulty(&self, fault: &str, words: &[&str], dir: Option<&Path>) -> Output {
        let mut command: Command = self.inlay.command();
        let spec = format!("{}={fault}@{}", self.step.name(), self.path("visited").display());
        output(command.env("INLAY_INJECT", spec).args(words).args(dir), RUN_WITHIN).unwrap()
    }

    fn assert_visited(&self) {
        assert!(self.path("visited").exists(), "{:?} was not come by", self.step);
    }

    fn mounted(&self) -> usize {
        let ran = self.inlay.succeed(["mounts", "--json"]).unwrap();
        serde_json::from_slice::<Vec<Value>>(&ran.stdout).unwrap().len()
    }

    /// Nothing of a mount is left, in the kernel or on disk.
    fn assert_clean(&self) {
        self.inlay.wait_until_quiet().unwrap();
        assert_eq!(fs::read_dir(self.mnt()).unwrap().count(), 0, "{:?}", self.step);
        for dir in ["mounts", "attached", "upper"] {
            let Ok(entries) = fs::read_dir(self.inlay.state().join(dir)) else { continue };
            let left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.is_empty(), "{:?}: {dir}: {left:?}", self.step);
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const RW: [&str; 4] = ["mount", "--rw", "--scratch", "base"];

/// The command tries again with the next daemon, and has one mount.
fn mount_is_tried_again(step: Step) {
    let host = Host::with_base(step);
    let ran = host.faulty("kill", &RW, Some(&host.mnt()));
    assert!(ran.status.success(), "{step:?}: {}", said(&ran));
    host.assert_visited();
    assert_eq!(host.mounted(), 1, "{step:?}");
    fs::write(host.mnt().join("new"), "n").unwrap();
    assert_eq!(fs::read(host.mnt().join("file")).unwrap(), b"x");
    host.inlay.succeed(["umount".as_ref(), host.mnt().as_os_str()]).unwrap();
    host.assert_clean();
}

/// Nobody asks again: what was not confirmed is undone by the next daemon, what was stays whole.
fn mount_is_given_up(step: Step) {
    let host = Host::with_base(step);
    // Starts the daemon, and keeps it.
    let other = host.path("other");
    fs::create_dir(&other).unwrap();
    let before = ["mount", "base"];
    let armed = host.path("visited");
    fs::write(&armed, "").unwrap();
    assert!(host.faulty("kill", &before, Some(&other)).status.success());
    fs::remove_file(&armed).unwrap();
    let request = json!({
        "snapshot": "base", "store": { "url": null, "plain_http": false }, "cache": "kept",
        "mountpoint": host.mnt(), "view": { "writable": "scratch" }, "deadline_ms": 60_000,
        "load": { "prefetch": "off", "record": "off" },
    });
    let key = [("Idempotency-Key", "given-up")];
    let asked = http::send(host.inlay.state(), "POST", "/v1/mounts", &key, &request).unwrap();
    assert!(asked.answer().is_err(), "{step:?}");
    host.assert_visited();
    host.inlay.wait_for_daemon().unwrap();
    let stays = matches!(step, Step::MountConfirmed | Step::AnswerKept);
    assert_eq!(host.mounted(), 1 + usize::from(stays), "{step:?}");
    assert_eq!(host.mnt().join("file").exists(), stays, "{step:?}");
    if stays {
        host.inlay.succeed(["umount".as_ref(), host.mnt().as_os_str()]).unwrap();
    }
    host.inlay.succeed(["umount".as_ref(), other.as_os_str()]).unwrap();
    host.assert_clean();
}

/// The step fails: so does the command, or it was no loss. Afterwards all is as if nothing had been.
fn mount_fails(step: Step) {
    let host = Host::with_base(step);
    let ran = host.faulty("error", &RW, Some(&host.mnt()));
    host.assert_visited();
    if ran.status.success() {
        host.inlay.succeed(["umount".as_ref(), host.mnt().as_os_str()]).unwrap();
    } else {
        assert!(said(&ran).contains(step.name()), "{step:?}: {}", said(&ran));
    }
    host.assert_clean();
    host.inlay.mount("base", &["--rw", "--scratch"]).unwrap().unmount().unwrap();
    host.assert_clean();
}

fn umount(step: Step, fault: &str) {
    let host = Host::with_base(step);
    // Its daemon is the one in which the step goes wrong.
    let ran = host.faulty(fault, &RW, Some(&host.mnt()));
    assert!(ran.status.success(), "{step:?}: {}", said(&ran));
    fs::write(host.mnt().join("new"), "n").unwrap();
    let ended = host.inlay.run(["umount".as_ref(), host.mnt().as_os_str()]).unwrap();
    if fault == "kill" {
        assert!(ended.status.success(), "{step:?}: {ended:?}");
    } else if host.mnt().join("file").exists() {
        host.inlay.succeed(["umount".as_ref(), host.mnt().as_os_str()]).unwrap();
    }
    host.assert_clean();
    host.assert_visited();
}

fn made(step: Step, fault: &str) {
    let host = Host::new(step);
    let source = of("dir", &host.path("tree"));
    let ran = host.faulty(fault, &["import", "--name", "base", &source], None);
    assert!(!ran.status.success(), "{step:?}");
    host.assert_visited();
    // It is there as a whole, or not at all.
    for snapshot in snapshots(&host.inlay) {
        host.inlay.succeed(["verify", snapshot["id"].as_str().unwrap()]).unwrap();
    }
    import(&host.inlay, &source, "base");
    assert_eq!(snapshots(&host.inlay).len(), 1);
    host.inlay.succeed(["verify", "base"]).unwrap();
    assert_eq!(fs::read_dir(host.inlay.state().join("tmp")).unwrap().count(), 0);
}

/// Each step of the list is come by here: one that is not fails its test.
fn steps_of(scene: Scene) -> impl Iterator<Item = Step> {
    Step::ALL.iter().copied().filter(move |step| step.scene() == scene)
}

#[test]
fn every_scene_has_its_test() {
    for step in Step::ALL {
        match step.scene() {
            // A new one needs a test: three have theirs below, the others in `boxes`.
            Scene::Mount
            | Scene::Umount
            | Scene::Import
            | Scene::Create
            | Scene::LiveMount
            | Scene::LiveUmount
            | Scene::Snapshot
            | Scene::Ship
            | Scene::Stop
            | Scene::Remove => {}
        }
    }
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn a_daemon_killed_in_a_mount_is_followed_by_one_that_finishes_it() {
    steps_of(Scene::Mount).for_each(mount_is_tried_again);
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn an_unconfirmed_mount_of_a_gone_client_is_undone() {
    steps_of(Scene::Mount).for_each(mount_is_given_up);
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn a_mount_that_fails_leaves_nothing() {
    steps_of(Scene::Mount).for_each(mount_fails);
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn a_daemon_killed_in_an_unmount_leaves_nothing() {
    steps_of(Scene::Umount).for_each(|step| umount(step, "kill"));
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn an_unmount_that_fails_leaves_nothing() {
    steps_of(Scene::Umount).for_each(|step| umount(step, "error"));
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn an_import_that_is_killed_or_fails_is_repeated() {
    for fault in ["kill", "error"] {
        steps_of(Scene::Import).for_each(|step| made(step, fault));
    }
}
