//! Daemons that are killed, or fail, at every step of making, mounting into, capturing, stopping and
//! removing a sandbox.

use std::fs;
use std::thread;

use inlay_base::inject::{Scene, Step};
use inlay_testkit::cli::{Inlay, Ran};

use crate::common::boxes::{Boxes, wait_for};
use crate::common::local;
use crate::steps_of;

/// A live mount passes by these, too.
const OF_MOUNTS: [Scene; 2] = [Scene::Mount, Scene::LiveMount];
const OF_UMOUNTS: [Scene; 2] = [Scene::Umount, Scene::LiveUmount];

/// Sandboxes of a host where one step goes wrong, once, when it is armed.
struct Faulty {
    boxes: Boxes,
    step: Step,
    fault: &'static str,
    visited: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Faulty {
    fn new(step: Step, fault: &'static str) -> Self {
        let dir = inlay_testkit::scratch().unwrap();
        let visited = dir.path().join("visited");
        fs::write(&visited, "").unwrap();
        let armed = format!("{}={fault}@{}", step.name(), visited.display());
        let inlay: Inlay =
            local().with_environment([("INLAY_INJECT", armed.as_str()), ("INLAY_LOG", "info")]);
        Self { boxes: Boxes::new(inlay), step, fault, visited, _dir: dir }
    }

    fn what(&self) -> String {
        format!("{:?}={}", self.step, self.fault)
    }

    /// Runs a command that comes by the step. After a kill it succeeds; if it fails, it says where.
    fn faulty(&self, words: &[&str]) -> Ran {
        fs::remove_file(&self.visited).unwrap();
        let ran = self.boxes.run(words);
        let what = self.what();
        assert!(self.visited.exists(), "{what}: was not come by: {ran:?}");
        let log = || self.boxes.inlay.daemon_log();
        if self.fault == "kill" {
            assert!(ran.status.success(), "{what}: {ran:?}\n{}", log());
        } else if !ran.status.success() {
            assert!(ran.stderr.contains(self.step.name()), "{what}: {ran:?}\n{}", log());
        }
        ran
    }

    /// The same again, if it failed.
    fn finish(&self, words: &[&str]) -> Ran {
        let ran = self.faulty(words);
        if ran.status.success() { ran } else { self.boxes.succeed(words) }
    }
}

fn each(scenes: &[Scene], test: impl Fn(Step, &'static str) + Sync) {
    let steps: Vec<Step> = scenes.iter().flat_map(|scene| steps_of(*scene)).collect();
    // Two at a time: most of each is waiting.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let all: Vec<_> =
        steps.iter().flat_map(|step| ["kill", "error"].map(|fault| (*step, fault))).collect();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((step, fault)) =
                    all.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    test(*step, fault);
                }
            });
        }
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn a_sandbox_is_made_whole_or_not_at_all() {
    each(&[Scene::Create], |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        let secret = format!("s={}", boxes.path("secret").display());
        let words = [
            "sandbox",
            "create",
            "base",
            "--name",
            "a",
            "--disk",
            "32M",
            "--secret",
            &secret,
            "--mount",
            "data:/data",
        ];
        let ran = host.faulty(&words);
        let listed = boxes.sandboxes();
        assert_eq!(listed.len(), usize::from(ran.status.success()), "{what}: {listed:?}");
        if !ran.status.success() {
            boxes.assert_nothing_left(&what);
            boxes.succeed(&words);
        }
        assert_eq!(boxes.sandboxes()[0]["state"], "running", "{what}");
        assert_eq!(boxes.listed("sandboxes").len(), 1, "{what}");
        assert_eq!(boxes.sh("a", "cat /data/file /run/secrets/s"), "xs", "{what}");
        boxes.assert_clean(&what);
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn a_live_mount_is_seen_whole_or_not_at_all() {
    each(&OF_MOUNTS, |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        let made = boxes.create("a", &[]);
        let words = ["mount", "data", "a:/x/y"];
        let ran = host.faulty(&words);
        if !ran.status.success() {
            let mounts = format!("sandboxes/{}/mounts", made["id"].as_str().unwrap());
            // One that could not be confirmed is undone after the answer.
            wait_for("the end of the mount", || boxes.listed(&mounts).is_empty());
            assert_eq!(boxes.sh("a", "[ -e /x ] || echo gone"), "gone\n", "{what}");
            boxes.succeed(&words);
        }
        boxes.sh("a", "echo n > /x/y/new");
        assert_eq!(boxes.sh("a", "cat /x/y/file /x/y/new"), "xn\n", "{what}");
        let shown = boxes.json(&["sandbox", "inspect", "a"]);
        assert_eq!(shown["mounts"].as_array().unwrap().len(), 1, "{what}: {shown}");
        let taken = boxes.snapshot("a:/x/y");
        assert_eq!(boxes.cat(&format!("{taken}:/new")), "n\n", "{what}");
        boxes.assert_clean(&what);
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn an_unmount_loses_nothing() {
    each(&OF_UMOUNTS, |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        boxes.create("a", &["--mount", "data:/data"]);
        boxes.sh("a", "echo n > /data/new");
        let ran = host.faulty(&["umount", "a:/data"]);
        // It may be over although something of it went wrong.
        if boxes.sh("a", "ls /data 2>/dev/null || true").contains("file") {
            assert!(!ran.status.success(), "{what}: {ran:?}");
            boxes.succeed(&["umount", "a:/data"]);
        }
        assert_eq!(boxes.sh("a", "ls /data 2>/dev/null || true"), "", "{what}");
        boxes.succeed(&["mount", "data", "a:/data"]);
        assert_eq!(boxes.sh("a", "cat /data/new"), "n\n", "{what}");
        boxes.succeed(&["umount", "--discard", "a:/data"]);
        boxes.succeed(&["mount", "data", "a:/data"]);
        assert_eq!(boxes.sh("a", "ls /data"), "file\n", "{what}");
        boxes.assert_clean(&what);
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn discarded_changes_stay_discarded() {
    each(&OF_UMOUNTS, |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        boxes.create("a", &["--mount", "data:/data"]);
        boxes.sh("a", "echo n > /data/new");
        let words = ["umount", "--discard", "a:/data"];
        let ran = host.faulty(&words);
        if boxes.sh("a", "ls /data 2>/dev/null || true").contains("file") {
            assert!(!ran.status.success(), "{what}: {ran:?}");
            boxes.succeed(&words);
        }
        boxes.succeed(&["mount", "data", "a:/data"]);
        assert_eq!(boxes.sh("a", "ls /data"), "file\n", "{what}");
        boxes.assert_clean(&what);
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn a_snapshot_is_there_or_not_and_the_sandbox_goes_on() {
    each(&[Scene::Snapshot, Scene::Import], |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        boxes.create("a", &[]);
        boxes.sh("a", "mkdir /work; echo n > /work/new");
        let before = snapshots(boxes);
        let words = ["snapshot", "a:/work", "--name", "work"];
        let ran = host.faulty(&words);
        // It stands still no longer.
        assert_eq!(boxes.sh("a", "echo alive"), "alive\n", "{what}");
        if !ran.status.success() {
            for id in snapshots(boxes) {
                boxes.succeed(&["verify", &id]);
            }
            boxes.succeed(&words);
        }
        assert_eq!(boxes.cat("work:/new"), "n\n", "{what}");
        assert_eq!(snapshots(boxes).len(), before.len() + 1, "{what}");
        boxes.assert_clean(&what);
        assert_eq!(boxes.listed("tmp"), Vec::<String>::new(), "{what}");
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn sealed_snapshots_reach_their_store() {
    each(&[Scene::Ship, Scene::Import], |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        boxes.create("a", &[]);
        boxes.sh("a", "mkdir /work; echo n > /work/new");
        fs::remove_file(&host.visited).unwrap();
        let words = ["snapshot", "a:/work", "--name", "work", "--wait", "sealed"];
        let mut ran = boxes.run(&words);
        if !ran.status.success() {
            assert!(ran.stderr.contains(step.name()), "{what}: {ran:?}");
            ran = boxes.succeed(&words);
        }
        let id = ran.text().lines().next().unwrap().to_owned();
        wait_for("the step", || host.visited.exists());
        boxes.inlay.wait_for_daemon().unwrap();
        // At once, wherever it is.
        boxes.succeed(&["mount", &id, "a:/sealed"]);
        assert_eq!(boxes.sh("a", "cat /sealed/new"), "n\n", "{what}");
        let store = boxes.inlay.state().join("outbox");
        let waiting = || {
            let outboxes = fs::read_dir(&store).into_iter().flatten().flatten();
            let records = outboxes.map(|one| {
                let parts = ["snapshots", "names"].map(|part| {
                    let entries = fs::read_dir(one.path().join("objects").join(part));
                    entries.map_or(0, Iterator::count)
                });
                parts.iter().sum::<usize>()
            });
            records.sum::<usize>()
        };
        wait_for("the end of the way", || waiting() == 0);
        assert_eq!(boxes.cat("work:/new"), "n\n", "{what}");
        boxes.assert_clean(&what);
        fs::remove_dir_all(&store).unwrap();
        boxes.succeed(&["verify", "work"]);
    });
}

fn snapshots(boxes: &Boxes) -> Vec<String> {
    let listed = crate::common::snapshots(&boxes.inlay);
    listed.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn stopped_sandboxes_keep_their_changes() {
    each(&[Scene::Stop], |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        boxes.create("a", &["--mount", "data:/data"]);
        boxes.sh("a", "mkdir /work; echo n > /work/new; echo m > /data/more");
        host.finish(&["sandbox", "stop", "--time", "0s", "a"]);
        assert_eq!(boxes.sandboxes()[0]["state"], "stopped", "{what}");
        let taken = boxes.snapshot("a:/work");
        assert_eq!(boxes.cat(&format!("{taken}:/new")), "n\n", "{what}");
        let taken = boxes.snapshot("a:/data");
        assert_eq!(boxes.cat(&format!("{taken}:/more")), "m\n", "{what}");
        boxes.assert_clean(&what);
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn a_stop_with_a_snapshot_has_both_or_goes_on() {
    each(&[Scene::Snapshot, Scene::Stop], |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        boxes.create("a", &[]);
        boxes.sh("a", "mkdir /work; echo n > /work/new");
        let words =
            ["sandbox", "stop", "--time", "0s", "--snapshot", "/work", "--name", "work", "a"];
        let ran = host.faulty(&words);
        if !ran.status.success() {
            if step.scene() == Scene::Snapshot {
                assert_eq!(boxes.sh("a", "echo alive"), "alive\n", "{what}");
            }
            boxes.succeed(&words);
        }
        assert_eq!(boxes.sandboxes()[0]["state"], "stopped", "{what}");
        assert_eq!(boxes.cat("work:/new"), "n\n", "{what}");
        boxes.assert_clean(&what);
    });
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to fail at")]
#[test]
fn removed_sandboxes_are_gone() {
    each(&[Scene::Remove], |step, fault| {
        let host = Faulty::new(step, fault);
        let (boxes, what) = (&host.boxes, host.what());
        boxes.create("a", &["--disk", "32M", "--mount", "data:/data"]);
        boxes.sh("a", "echo n > /data/new");
        let ran = host.faulty(&["sandbox", "rm", "--force", "a"]);
        // The daemon that starts next finishes what was begun, before it is asked to or after.
        if !ran.status.success() && !boxes.sandboxes().is_empty() {
            let again = boxes.run(&["sandbox", "rm", "--force", "a"]);
            assert!(
                again.status.success() || again.stderr.contains("no sandbox"),
                "{what}: {again:?}"
            );
        }
        assert_eq!(boxes.sandboxes().len(), 0, "{what}");
        boxes.assert_nothing_left(&what);
    });
}
