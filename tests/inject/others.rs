//! The end of everybody but the daemon: of callers, of the runtime, of the store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use inlay_base::inject::Step;
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::weed::Weed;

use crate::common::boxes::{Boxes, wait_for};
use crate::common::{local, s3};

/// How long a step waits in which the caller is killed.
const LONG: &str = "sleep:1500";

/// Sandboxes of a daemon that waits at a step, once, when it is armed.
fn slow(step: Step) -> (Boxes, tempfile::TempDir) {
    let dir = inlay_testkit::scratch().unwrap();
    let visited = dir.path().join("visited");
    fs::write(&visited, "").unwrap();
    let armed = format!("{}={LONG}@{}", step.name(), visited.display());
    let inlay = local().with_environment([("INLAY_INJECT", armed.as_str()), ("INLAY_LOG", "info")]);
    (Boxes::new(inlay), dir)
}

/// Starts a command, and kills it when the daemon has come by the step.
fn kill_caller((boxes, dir): &(Boxes, tempfile::TempDir), words: &[&str]) {
    let visited = dir.path().join("visited");
    fs::remove_file(&visited).unwrap();
    let mut command = boxes.inlay.command();
    let mut child =
        command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the step", || visited.exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to wait at")]
#[test]
fn a_sandbox_of_a_gone_caller_is_removed() {
    for step in [Step::SandboxPrepared, Step::SandboxRootMounted, Step::SandboxContainerMade] {
        let host = slow(step);
        let boxes = &host.0;
        // Keeps the daemon.
        boxes.create("other", &[]);
        let words = ["sandbox", "create", "base", "--name", "a", "--disk", "32M"];
        kill_caller(&host, &words);
        wait_for("the end of it", || boxes.sandboxes().len() == 1);
        assert_eq!(boxes.listed("sandboxes").len(), 1, "{step:?}");
        // Its name is free again.
        boxes.succeed(&words);
        boxes.assert_clean(&format!("{step:?}"));
    }
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to wait at")]
#[test]
fn a_live_mount_of_a_gone_caller_is_undone() {
    for step in [Step::MountClaimed, Step::LiveMountNoted, Step::MountAttached] {
        let host = slow(step);
        let boxes = &host.0;
        let made = boxes.create("a", &[]);
        let mounts = format!("sandboxes/{}/mounts", made["id"].as_str().unwrap());
        let words = ["mount", "data", "a:/x/y"];
        kill_caller(&host, &words);
        // At once, while the first is still being undone: it is waited for.
        boxes.succeed(&words);
        assert_eq!(boxes.sh("a", "cat /x/y/file"), "x", "{step:?}");
        boxes.succeed(&["umount", "a:/x/y"]);
        assert_eq!(boxes.sh("a", "[ -e /x ] || echo gone"), "gone\n", "{step:?}");
        wait_for("the end of it", || boxes.listed(&mounts).is_empty());
        boxes.assert_clean(&format!("{step:?}"));
    }
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to wait at")]
#[test]
fn a_sandbox_goes_on_when_the_snapshots_caller_is_gone() {
    let host = slow(Step::SandboxFrozen);
    let boxes = &host.0;
    boxes.create("a", &[]);
    boxes.sh("a", "mkdir /work; echo n > /work/new");
    kill_caller(&host, &["snapshot", "a:/work", "--name", "given-up"]);
    assert_eq!(boxes.sh("a", "echo alive"), "alive\n");
    boxes.snapshot("a:/work");
    assert!(!boxes.run(&["show", "given-up"]).status.success());
    boxes.assert_clean("a snapshot that was given up");
}

/// A runtime that kills itself when it is told to do `what` and FILE is there.
fn killing_runtime(boxes: &Boxes, what: &str) -> String {
    let path = boxes.path("runtime");
    let armed = boxes.path("armed");
    let script = format!(
        "#!/bin/sh\nfor word; do\n  if [ \"$word\" = {what} ] && [ -e {armed} ]; then\n    \
         rm {armed}\n    {early}kill -KILL $$\n  fi\ndone\nexec runc \"$@\"\n",
        armed = armed.display(),
        // Half done is worse than not begun.
        early = if what == "create" { "runc \"$@\"; " } else { "" },
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_runtime_that_is_killed_leaves_nothing() {
    for what in ["create", "start"] {
        let boxes = Boxes::new(local().with_environment([("INLAY_LOG", "info")]));
        let runtime = killing_runtime(&boxes, what);
        fs::write(boxes.path("armed"), "").unwrap();
        let words = ["sandbox", "create", "base", "--name", "a", "--runtime", &runtime];
        let ran = boxes.run(&words);
        assert!(!ran.status.success(), "{what}: {ran:?}");
        assert!(ran.stderr.contains("runtime"), "{what}: {ran:?}");
        assert!(!boxes.path("armed").exists(), "{what}");
        boxes.assert_nothing_left(what);
        boxes.succeed(&words);
        boxes.assert_clean(what);
    }
}

#[test]
fn a_runtime_that_is_killed_while_it_starts_a_program_is_told_of() {
    let boxes = Boxes::new(local().with_environment([("INLAY_LOG", "info")]));
    let runtime = killing_runtime(&boxes, "exec");
    boxes.create("a", &["--runtime", &runtime]);
    fs::write(boxes.path("armed"), "").unwrap();
    let ran = boxes.run(&["exec", "a", "--", "echo", "x"]);
    assert!(!ran.status.success(), "{ran:?}");
    assert!(ran.stderr.contains("runtime"), "{ran:?}");
    assert_eq!(boxes.sh("a", "echo alive"), "alive\n");
    boxes.assert_clean("exec");
}

#[test]
fn a_store_that_is_dead_is_told_of_and_nothing_is_left() {
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let first = Boxes::new(s3(proxy.address(), "p"));
    // A host that has nothing yet, so that everything comes from the store.
    let boxes = Boxes { inlay: s3(proxy.address(), "p"), dir: inlay_testkit::scratch().unwrap() };
    let dead = || proxy.inject(Rule::new(Fault::Status(503)));
    let fails = |words: &[&str]| {
        dead();
        let ran = boxes.run(words);
        proxy.heal();
        assert!(!ran.status.success(), "{ran:?}");
        assert!(ran.stderr.contains("503") || ran.stderr.contains("store"), "{ran:?}");
    };
    let create = ["sandbox", "create", "base", "--name", "a"];
    fails(&create);
    boxes.assert_nothing_left("create");
    let made = boxes.json(&create);
    boxes.sh("a", "mkdir /work; echo n > /work/new");
    let mounts = format!("sandboxes/{}/mounts", made["id"].as_str().unwrap());

    fails(&["mount", "data", "a:/data"]);
    wait_for("the end of it", || boxes.listed(&mounts).is_empty());
    assert_eq!(boxes.sh("a", "[ -e /data ] || echo gone"), "gone\n");
    boxes.succeed(&["mount", "data", "a:/data"]);
    assert_eq!(boxes.sh("a", "cat /data/file"), "x");

    fails(&["snapshot", "a:/work"]);
    assert_eq!(boxes.sh("a", "echo alive"), "alive\n");
    let taken = boxes.snapshot("a:/work");
    assert_eq!(boxes.cat(&format!("{taken}:/new")), "n\n");

    // It can't be told whether it would be a snapshot: so it is not stopped.
    fails(&["sandbox", "stop", "--time", "0s", "--snapshot", "/work", "--parent", "none", "a"]);
    assert_eq!(boxes.sandboxes()[0]["state"], "running");
    // Without a snapshot it can be stopped and removed, whatever becomes of the store.
    dead();
    boxes.succeed(&["sandbox", "stop", "--time", "0s", "a"]);
    boxes.assert_clean("a dead store");
    drop(first);
}
