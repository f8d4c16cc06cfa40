//! Live mounts whose directories are renamed, and captures beside whatever else goes on in a sandbox.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use inlay_testkit::cli::{Inlay, Ran};
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::ahead::Remote;
use crate::boxes::{Boxes, cgroups, wait_for};

fn host() -> Boxes {
    Boxes::new(Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap())
}

/// What a command says that is refused.
fn refused(host: &Boxes, words: &[&str]) -> String {
    let ran = host.run(words);
    assert!(!ran.status.success(), "{words:?}: {ran:?}");
    ran.stderr
}

/// The names of what is mounted in a sandbox.
fn mounted(host: &Boxes, sandbox: &str) -> Vec<String> {
    let shown = host.json(&["sandbox", "inspect", sandbox]);
    let mounts = shown["mounts"].as_array().unwrap().iter();
    let mut paths: Vec<_> =
        mounts.map(|mount| mount["path"].as_str().unwrap().to_owned()).collect();
    paths.sort();
    paths
}

#[test]
fn a_live_mount_stays_itself_when_directories_are_renamed() {
    let host = host();
    host.create("a", &[]);
    // Two projects, each with something mounted in it, one of these with another one inside.
    host.succeed(&["mount", "empty", "a:/work"]);
    host.sh("a", "mkdir -p /work/one /work/two");
    for path in ["/work/one/deps", "/work/two/deps", "/work/one/deps/x/deep"] {
        host.succeed(&["mount", "empty", &format!("a:{path}")]);
    }
    host.sh(
        "a",
        "echo 1 > /work/one/deps/n; echo 2 > /work/two/deps/n; echo d > /work/one/deps/x/deep/n
         mv /work/one /work/t; mv /work/two /work/one; mv /work/t /work/two; mv /work/two/deps/x /work/two/deps/y",
    );
    let places = ["/work", "/work/one/deps", "/work/two/deps", "/work/two/deps/y/deep"];
    assert_eq!(mounted(&host, "a"), places);
    let check = |when: &str| {
        let one = host.snapshot("a:/work/one/deps");
        assert_eq!(host.cat(&format!("{one}:/n")), "2\n", "{when}");
        let two = host.snapshot("a:/work/two");
        assert_eq!(host.cat(&format!("{two}:/deps/n")), "1\n", "{when}");
        let whole = host.snapshot("a:/work");
        for (path, text) in [("one/deps", "2\n"), ("two/deps", "1\n"), ("two/deps/y/deep", "d\n")] {
            assert_eq!(host.cat(&format!("{whole}:/{path}/n")), text, "{when}: {path}");
        }
    };
    check("in the sandbox that runs");
    host.kill_daemon();
    check("by the next daemon");
    // Where one was before, another can be mounted.
    host.sh("a", "mkdir -p /work/two/deps/x/deep");
    let gone = refused(&host, &["umount", "a:/work/two/deps/x/deep"]);
    assert!(gone.contains("nothing is mounted"), "{gone}");
    let again = refused(&host, &["mount", "empty", "a:/work/one/deps"]);
    assert!(again.contains("already mounted"), "{again}");
    // As it was at the end.
    host.succeed(&["sandbox", "stop", "--time", "1s", "a"]);
    check("in the sandbox that has ended");
    host.assert_clean("renamed");
}

#[test]
fn a_moved_mount_is_unmounted_where_it_is() {
    let host = host();
    host.create("a", &[]);
    host.succeed(&["mount", "empty", "a:/p/web/deps"]);
    host.sh(
        "a",
        "echo kept > /p/web/deps/n; mv /p/web /p/front; mkdir -p /p/web/deps; touch /p/front/mine",
    );
    let gone = refused(&host, &["umount", "a:/p/web/deps"]);
    assert!(gone.contains("/p/front/deps"), "it says where it is: {gone}");
    host.succeed(&["umount", "a:/p/front/deps"]);
    assert_eq!(mounted(&host, "a"), [""; 0]);
    // The directories that programs have made stay, at whatever path others were made for the mount.
    assert_eq!(
        host.sh("a", "cd /p; find . -type d | sort; ls front"),
        ".\n./front\n./web\n./web/deps\nmine\n"
    );
    // What was changed in it belongs to the place where it was last.
    host.succeed(&["mount", "empty", "a:/p/web/deps"]);
    assert_eq!(host.sh("a", "ls /p/web/deps"), "");
    host.succeed(&["mount", "empty", "a:/p/front/deps"]);
    assert_eq!(host.sh("a", "cat /p/front/deps/n"), "kept\n");
    host.assert_clean("unmounted");
}

#[test]
fn the_parent_of_a_snapshot_follows_the_directory_not_its_path() {
    let host = host();
    host.create("a", &[]);
    host.sh("a", "mkdir /A /B; echo A > /A/f; echo B > /B/f");
    let (a, b) = (host.snapshot("a:/A"), host.snapshot("a:/B"));
    let parent = |id: &str| host.json(&["show", id])["parent"].as_str().map(str::to_owned);
    host.succeed(&["mount", &a, "a:/x"]);
    host.sh("a", "echo more >> /x/f");
    let first = host.snapshot("a:/x");
    assert_eq!(parent(&first), Some(a.clone()));
    host.sh("a", "echo more >> /x/f");
    assert_eq!(parent(&host.snapshot("a:/x")), Some(first));
    host.succeed(&["umount", "--discard", "a:/x"]);
    // Another mount, which may have the number of the one that is gone.
    host.succeed(&["mount", &b, "a:/x"]);
    host.sh("a", "echo more >> /x/f");
    assert_eq!(parent(&host.snapshot("a:/x")), Some(b.clone()));
    host.succeed(&["umount", "--discard", "a:/x"]);
    host.succeed(&["mount", &a, "a:/x"]);
    host.sh("a", "echo other >> /x/f");
    assert_eq!(parent(&host.snapshot("a:/x")), Some(a.clone()));
    // Directories that change places keep their histories.
    host.sh("a", "mv /A /t; mv /B /A; mv /t /B; echo new >> /A/f; echo new >> /B/f");
    assert_eq!(parent(&host.snapshot("a:/A")), Some(b));
    assert_eq!(parent(&host.snapshot("a:/B")), Some(a));
    host.assert_clean("lineage");
}

#[test]
fn the_work_in_a_sandbox_outlives_keeper_and_daemon() {
    let host = host();
    host.create("a", &[]);
    // One path is made for its mount, one is there.
    host.sh("a", "mkdir /there; echo root > /file");
    for path in ["/made/for/it", "/there"] {
        host.succeed(&["mount", "data", &format!("a:{path}")]);
        host.sh("a", &format!("echo work > {path}/new"));
    }
    let (daemon, keeper) = host.inlay.daemon_pids().unwrap();
    for process in [keeper, daemon] {
        kill_process(process, Signal::KILL).unwrap();
    }
    wait_for("the sandbox to be stopped", || host.sandboxes()[0]["state"] == "stopped");
    for path in ["/made/for/it", "/there"] {
        let taken = host.snapshot(&format!("a:{path}"));
        assert_eq!(host.cat(&format!("{taken}:/new")), "work\n", "{path}");
        assert_eq!(host.cat(&format!("{taken}:/file")), "x", "{path}");
    }
    let root = host.snapshot("a");
    assert_eq!(host.cat(&format!("{root}:/file")), "root\n");
}

#[test]
fn the_root_is_not_mounted_on() {
    let host = host();
    host.create("a", &[]);
    for path in ["/", "/.", "/bin/.."] {
        let why = refused(&host, &["mount", "data", &format!("a:{path}")]);
        assert!(why.contains("it is the root directory"), "{path}: {why}");
    }
    assert_eq!(host.sh("a", "ls /bin/sh"), "/bin/sh\n");
    assert_eq!(mounted(&host, "a"), [""; 0]);
    let why = refused(&host, &["mount", "data", "/"]);
    assert!(why.contains("it is the root directory"), "{why}");
    host.assert_clean("the root");
}

/// A process in a mount namespace of its own.
struct Container(Child);

impl Container {
    fn start() -> Self {
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn unmounting_nothing_is_an_error() {
    let host = host();
    let (one, two) = (Container::start(), Container::start());
    let dir = host.path("here");
    fs::create_dir(&dir).unwrap();
    let dir = dir.to_str().unwrap();
    for container in [&one, &two] {
        host.succeed(&["mount", "--pid", &container.pid(), "data", dir]);
    }
    // Two mounts at one path are told apart.
    let listed = host.json(&["mounts"]);
    let pids = |listed: &Value| -> Vec<String> {
        let mounts = listed.as_array().unwrap().iter();
        mounts.map(|mount| mount["inside"]["pid"].as_u64().unwrap().to_string()).collect()
    };
    assert_eq!(pids(&listed), [one.pid(), two.pid()]);
    let shown = host.succeed(&["mounts"]).text();
    assert!(shown.contains(&format!("(pid {}, sleep", one.pid())), "{shown}");
    // None of them is where this process sees the path.
    let why = refused(&host, &["umount", dir]);
    assert!(why.contains("no mount on"), "{why}");
    host.succeed(&["umount", "--pid", &one.pid(), dir]);
    let why = refused(&host, &["umount", "--pid", &one.pid(), dir]);
    assert!(why.contains("no mount on"), "{why}");
    assert_eq!(pids(&host.json(&["mounts"])), [two.pid()]);
    host.succeed(&["umount", "--pid", &two.pid(), dir]);
    // Nor is anything after an unmount by others, whether a daemon runs or not.
    let here = host.path("mnt");
    fs::create_dir(&here).unwrap();
    let here = here.to_str().unwrap();
    host.succeed(&["mount", "data", here]);
    assert!(Command::new("umount").arg(here).status().unwrap().success());
    let why = refused(&host, &["umount", here]);
    assert!(why.contains("no mount on"), "{why}");
    host.inlay.wait_until_quiet().unwrap();
    let why = refused(&host, &["umount", here]);
    assert!(why.contains("no mount on"), "{why}");
}

/// The file that freezes a sandbox, and what freezes and thaws it.
fn freezer(id: &str) -> (PathBuf, [&'static str; 2]) {
    let control = |name: &str| cgroups(id).map(|dir| dir.join(name)).find(|path| path.exists());
    let v1 = control("freezer.state").map(|path| (path, ["FROZEN", "THAWED"]));
    v1.or_else(|| control("cgroup.freeze").map(|path| (path, ["1", "0"]))).unwrap()
}

#[test]
fn a_sandbox_that_was_frozen_before_stays_frozen() {
    let host = host();
    let id = host.create("a", &[])["id"].as_str().unwrap().to_owned();
    host.sh("a", "mkdir /p; echo x > /p/x");
    let (control, [freeze, thaw]) = freezer(&id);
    fs::write(&control, freeze).unwrap();
    let is_frozen = || fs::read_to_string(&control).unwrap().trim() == freeze;
    wait_for("the sandbox to stand still", is_frozen);
    let taken = host.snapshot("a:/p");
    assert_eq!(host.cat(&format!("{taken}:/x")), "x\n");
    assert!(is_frozen());
    fs::write(&control, thaw).unwrap();
    host.sh("a", "echo y > /p/x");
    host.snapshot("a:/p");
    assert!(!is_frozen());
    // What is frozen can be removed.
    fs::write(&control, freeze).unwrap();
    host.assert_clean("frozen");
}

/// A command that goes on while others are run.
struct Beside {
    process: Pid,
    running: thread::JoinHandle<Ran>,
}

impl Beside {
    fn start(host: &Boxes, words: &[&str]) -> Self {
        let mut command = host.inlay.command();
        let arguments = words.iter().map(|word| (*word).into()).collect();
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let process = Pid::from_child(&child);
        let running = thread::spawn(move || {
            let out = child.wait_with_output().unwrap();
            Ran {
                arguments,
                status: out.status,
                stdout: out.stdout,
                stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
            }
        });
        Self { process, running }
    }

    fn is_over(&self) -> bool {
        self.running.is_finished()
    }

    fn end(self) -> Ran {
        let given_up = || {
            let _ = kill_process(self.process, Signal::KILL);
            String::new()
        };
        wait::until_or("the end of a command", || self.is_over(), given_up);
        self.running.join().unwrap()
    }
}

/// A snapshot of a new directory whose upload does not go on.
fn uploading(host: &Boxes, remote: &Remote, target: &str) -> Beside {
    let (sandbox, dir) = target.split_once(':').unwrap();
    let fill = format!("mkdir {dir}; dd if=/dev/urandom of={dir}/f bs=64k count=8 2>/dev/null");
    host.sh(sandbox, &fill);
    remote.proxy.forget();
    remote.proxy.inject(Rule::new(Fault::Stall).method("PUT").path("/blobs/"));
    let snapshot = Beside::start(host, &["snapshot", target]);
    wait_for("the upload", || !remote.proxy.requests("PUT", "/blobs/").is_empty());
    snapshot
}

#[test]
fn no_command_waits_for_a_snapshot_in_flight() {
    let remote = Remote::start();
    let host = Boxes::new(remote.host());
    host.create("a", &[]);
    host.succeed(&["mount", "empty", "a:/p"]);
    host.succeed(&["mount", "empty", "a:/q"]);
    host.sh("a", "dd if=/dev/urandom of=/p/f bs=64k count=8 2>/dev/null; echo q > /q/f");
    remote.proxy.forget();
    remote.proxy.inject(Rule::new(Fault::Stall).method("PUT").path("/blobs/"));
    let snapshot = Beside::start(&host, &["snapshot", "a:/p"]);
    wait_for("the upload", || !remote.proxy.requests("PUT", "/blobs/").is_empty());
    // All of these are over before the snapshot is.
    host.succeed(&["mount", "empty", "a:/r"]);
    host.succeed(&["umount", "--discard", "a:/q"]);
    // Its changes are still read.
    host.succeed(&["umount", "--discard", "a:/p"]);
    assert_eq!(host.sh("a", "ls /p /q 2>&1 | wc -l"), "2\n");
    assert!(!snapshot.is_over());
    remote.proxy.heal();
    let taken = snapshot.end();
    // Whatever it has seen of the mount, it is not half of it.
    if taken.status.success() {
        let id = taken.text().lines().next().unwrap().to_owned();
        assert_eq!(host.succeed(&["ls", &id]).text(), "f\n", "{taken:?}");
    } else {
        assert!(taken.stderr.contains("does not exist"), "{taken:?}");
    }
    // And what was thrown away is gone when nothing reads it any more.
    let id = host.json(&["sandbox", "inspect", "a"])["id"].as_str().unwrap().to_owned();
    wait_for("discarded changes to go", || {
        let left = host.listed(&format!("sandboxes/{id}/mounts"));
        left.iter().filter(|name| name.rsplit('.').next() == Some("json")).count() == 1
    });
    let snapshot = uploading(&host, &remote, "a:/s");
    host.succeed(&["sandbox", "stop", "--time", "0s", "a"]);
    assert!(!snapshot.is_over());
    assert_eq!(host.sandboxes()[0]["state"], "stopped");
    remote.proxy.heal();
    let taken = snapshot.end();
    assert!(taken.status.success(), "{taken:?}");
    let id = taken.text().lines().next().unwrap().to_owned();
    assert_eq!(host.succeed(&["ls", &id]).text(), "f\n", "{taken:?}");
    host.succeed(&["sandbox", "rm", "a"]);
    host.create("a", &[]);
    let snapshot = uploading(&host, &remote, "a:/s");
    host.succeed(&["sandbox", "rm", "--force", "a"]);
    remote.proxy.heal();
    let taken = snapshot.end();
    assert!(!taken.status.success(), "it was cancelled with its sandbox: {taken:?}");
    host.assert_nothing_left("captured");
}

#[test]
fn one_process_that_waits_for_a_store_does_not_hold_up_the_others() {
    let remote = Remote::start();
    let host = Boxes::new(remote.host());
    fs::create_dir(host.path("big")).unwrap();
    for file in ["one", "two"] {
        let bytes = inlay_testkit::content::random(file, 300_000);
        fs::write(host.path("big").join(file), bytes).unwrap();
    }
    remote.proxy.forget();
    host.import("big", "big", "directory");
    let blob = remote.proxy.requests("PUT", "/blobs/").pop().expect("a blob is stored").path;
    let blob = blob.split('?').next().unwrap().to_owned();
    host.create("a", &[]);
    host.succeed(&["mount", "--no-cache", "--prefetch", "off", "big", "a:/big"]);
    host.sh("a", "mkdir /p; echo x > /p/x");
    // Of nothing else, which the snapshot may need.
    remote.proxy.inject(Rule::new(Fault::Stall).method("GET").path(&blob));
    remote.proxy.forget();
    host.succeed(&["exec", "--detach", "a", "--", "cat", "/big/one"]);
    wait_for("a reader to wait", || !remote.proxy.requests("GET", &blob).is_empty());
    host.succeed(&[
        "exec",
        "--detach",
        "a",
        "--",
        "sh",
        "-c",
        "while :; do echo >> /log; sleep 0.01; done",
    ]);
    let lines = || host.sh("a", "wc -l < /log").trim().parse::<u32>().unwrap();
    wait_for("the other one to run", || {
        host.run(&["exec", "a", "--", "ls", "/log"]).status.success()
    });
    let before = lines();
    let ran = host.run(&["snapshot", "a:/p"]);
    assert!(!ran.status.success(), "{ran:?}");
    assert!(ran.stderr.contains("could not be frozen") && ran.stderr.contains("(cat)"), "{ran:?}");
    // It was frozen for a part of the time only, and goes on.
    assert!(lines() > before + 20, "{before} lines before, {} after", lines());
    remote.proxy.heal();
    host.sh("a", "cat /big/one > /dev/null");
    wait_for("the reader to end", || host.run(&["snapshot", "a:/p"]).status.success());
    host.assert_clean("stuck");
}
