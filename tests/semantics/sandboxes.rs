//! Sandboxes, snapshots of them, and live mounts: what people build on.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use inlay_testkit::cli::{Inlay, Ran};
use inlay_testkit::{leftover, wait};
use serde_json::Value;

use crate::place::Place;

/// The bits of signals 1 to 31 in proc(5)'s masks.
const STANDARD_SIGNALS: u64 = 0x7fff_ffff;

/// What the small root can do.
const TOOLS: [&str; 17] = [
    "md5sum", "sh", "cat", "ls", "touch", "mkdir", "sleep", "mv", "rm", "stat", "id", "echo", "dd",
    "find", "chmod", "env", "pwd",
];

/// A place with an image `base` that has a shell. Its sandboxes end with it.
pub(crate) struct Host(pub(crate) Place);

impl Host {
    pub(crate) fn new() -> Self {
        Self::of(Place::new())
    }

    fn of(place: Place) -> Self {
        let bin = place.tree().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
        let busybox = busybox.iter().find(|path| path.exists());
        let busybox = busybox.expect("the package busybox-static is missing");
        fs::copy(busybox, bin.join("busybox")).unwrap();
        for tool in TOOLS {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        place.write("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n");
        place.write("etc/release", "1\n");
        place.import_as(
            &format!("dir:{}", place.tree().display()),
            &["--name", "base", "--kind", "image"],
        );
        Self(place)
    }

    pub(crate) fn create(&self, name: &str, options: &[&str]) -> Value {
        let words = ["sandbox", "create", "base", "--name", name];
        self.0.json([&words[..], options].concat())
    }

    /// What a shell in the sandbox prints.
    pub(crate) fn sh(&self, sandbox: &str, script: &str) -> String {
        let ran = self.0.run(["exec", sandbox, "--", "sh", "-c", script]);
        String::from_utf8(ran.stdout).unwrap()
    }

    fn exec(&self, words: &[&str]) -> Ran {
        let command = [&["exec"][..], words].concat();
        self.0.inlay.run(command).unwrap()
    }

    /// Takes a snapshot and gives its id.
    fn snapshot(&self, place: &str, options: &[&str]) -> String {
        let taken = self.0.json([&["snapshot", place][..], options].concat());
        taken["id"].as_str().unwrap().to_owned()
    }
}

fn kill_daemon(host: &Host) {
    let (daemon, _) = host.0.inlay.daemon_pids().unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
}

impl Drop for Host {
    fn drop(&mut self) {
        let listed = self.0.inlay.run(["sandbox", "ls", "--json"]).unwrap();
        let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        for sandbox in &listed {
            let name = sandbox["name"].as_str().unwrap_or_default();
            let removed = self.0.inlay.run(["sandbox", "rm", "--force", name]);
            if !thread::panicking() {
                assert!(removed.unwrap().status.success(), "{name} is not removed");
            }
        }
        let _ = self.0.inlay.run(["daemon", "stop", "--force"]);
    }
}

#[test]
fn a_project_outlives_its_sandbox() {
    let host = Host::new();
    host.create("a", &[]);
    host.sh("a", "mkdir /project; echo one > /project/file; chmod 751 /project/file");
    let before = host.sh("a", "stat -c '%n %a %s %Y' /project/file");
    let first = host.snapshot("a:/project", &["--name", "project"]);
    host.0.run(["sandbox", "rm", "--force", "a"]);

    host.create("b", &[]);
    host.0.run(["mount", "project", "b:/project"]);
    assert_eq!(host.sh("b", "cat /project/file"), "one\n");
    assert_eq!(host.sh("b", "stat -c '%n %a %s %Y' /project/file"), before);
    host.sh("b", "echo two >> /project/file; mkdir /project/sub; echo x > /project/sub/new");
    let second = host.snapshot("b:/project", &[]);
    assert_ne!(first, second);
    assert_eq!(host.0.cat(&format!("{second}:/file")), b"one\ntwo\n");
    assert_eq!(host.0.cat(&format!("{second}:/sub/new")), b"x\n");
    assert_eq!(host.0.cat("project:/file"), b"one\n");
    assert_eq!(host.0.json(["show", &second])["parent"].as_str(), Some(&*first));
}

#[test]
fn a_live_mount_hides_existing_files_until_it_is_unmounted() {
    let host = Host::new();
    host.create("a", &[]);
    host.sh("a", "mkdir -p /data; echo below > /data/below");
    host.0.write("only/above", "above\n");
    host.0.import_as(
        &format!("dir:{}", host.0.tree().join("only").display()),
        &["--name", "above", "--kind", "directory"],
    );
    host.0.run(["mount", "above", "a:/data"]);
    assert_eq!(host.sh("a", "ls /data"), "above\n");
    host.0.run(["umount", "a:/data"]);
    assert_eq!(host.sh("a", "ls /data"), "below\n");
    // A path that is missing is made, and is gone again afterwards.
    host.0.run(["mount", "--read-only", "above", "a:/x/y/z"]);
    assert_eq!(host.sh("a", "cat /x/y/z/above"), "above\n");
    assert!(!host.exec(&["a", "--", "touch", "/x/y/z/new"]).status.success());
    host.0.run(["umount", "a:/x/y/z"]);
    assert_eq!(host.sh("a", "ls / | grep -c '^x$' || true; [ -e /x ] || echo gone"), "0\ngone\n");
}

#[test]
fn mounts_in_a_sandbox_nest() {
    let host = Host::new();
    host.create("a", &[]);
    host.0.run(["mount", "empty", "a:/project"]);
    host.0.run(["mount", "empty", "a:/project/deps/node"]);
    host.sh("a", "echo outer > /project/o; echo inner > /project/deps/node/i");
    let refused = host.0.refused(["umount", "a:/project"]);
    assert!(refused.contains("/project/deps/node"), "{refused}");
    let whole = host.snapshot("a:/project", &[]);
    assert_eq!(host.0.cat(&format!("{whole}:/deps/node/i")), b"inner\n");
    let inner = host.snapshot("a:/project/deps/node", &[]);
    assert_eq!(host.0.cat(&format!("{inner}:/i")), b"inner\n");
    host.0.run(["umount", "a:/project/deps/node"]);
    host.0.run(["umount", "a:/project"]);
}

#[test]
fn unmounted_changes_are_kept_as_long_as_the_sandbox() {
    let host = Host::new();
    host.create("a", &[]);
    host.0.run(["mount", "empty", "a:/work"]);
    host.sh("a", "echo mine > /work/file");
    host.0.run(["umount", "a:/work"]);
    host.0.run(["mount", "empty", "a:/work"]);
    assert_eq!(host.sh("a", "cat /work/file"), "mine\n");
    host.0.run(["umount", "--discard", "a:/work"]);
    host.0.run(["mount", "empty", "a:/work"]);
    assert_eq!(host.sh("a", "ls /work"), "");
}

#[test]
fn a_filesystem_snapshot_starts_sandboxes_and_a_directory_snapshot_does_not() {
    let host = Host::new();
    host.create("a", &["--env", "KEPT=no"]);
    host.sh("a", "echo 2 > /etc/release; rm /etc/passwd; mkdir /new; touch /new/file");
    let whole = host.snapshot("a", &["--name", "changed"]);
    assert!(whole.starts_with("fs-"), "{whole}");
    let ran = host.0.run(["run", "--rm", "changed", "sh", "-c", "cat /etc/release; ls /new /etc"]);
    let printed = String::from_utf8(ran.stdout).unwrap();
    assert!(printed.starts_with("2\n") && printed.contains("file"), "{printed}");
    assert!(!printed.contains("passwd"), "{printed}");
    let directory = host.snapshot("a:/new", &[]);
    let refused = host.0.refused(["sandbox", "create", &directory]);
    assert!(refused.contains("can't be a sandbox's root"), "{refused}");
}

#[test]
fn a_snapshot_of_an_unchanged_directory_is_the_same() {
    let host = Host::new();
    host.create("a", &[]);
    host.sh(
        "a",
        "mkdir /p; dd if=/dev/urandom of=/p/big bs=64k count=40 2>/dev/null; echo x > /p/x",
    );
    let first = host.snapshot("a:/p", &[]);
    let again = host.0.json(["snapshot", "a:/p"]);
    assert_eq!(again["id"].as_str(), Some(&*first));
    assert_eq!(
        (again["unchanged"].as_bool(), again["stored_bytes"].as_u64()),
        (Some(true), Some(0))
    );
    host.sh("a", "echo y > /p/x");
    let third = host.0.json(["snapshot", "a:/p"]);
    assert_ne!(third["id"].as_str(), Some(&*first));
    // The large file is neither read nor stored again.
    assert!(third["read_bytes"].as_u64().unwrap() < 1000, "{third}");
    assert!(third["stored_bytes"].as_u64().unwrap() < 10_000, "{third}");
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to wait at")]
#[test]
fn a_sealed_snapshot_is_mounted_at_once_and_reaches_its_store() {
    let place = Place::new();
    let slow = [("INLAY_INJECT", "sealed-blobs-shipped=sleep:3000")];
    let inlay = place.inlay.command().get_program().to_owned();
    let host = Host::of(Place {
        inlay: Inlay::new(inlay.to_str().unwrap()).unwrap().with_environment(slow),
        ..place
    });
    host.create("a", &[]);
    host.create("b", &[]);
    let fill = "mkdir /p; dd if=/dev/urandom of=/p/big bs=64k count=40 2>/dev/null; echo x > /p/x";
    host.sh("a", fill);
    let taken = host.0.json(["snapshot", "a:/p", "--wait", "sealed", "--name", "sealed"]);
    assert_eq!(taken["durable"], false);
    let id = taken["id"].as_str().unwrap();
    assert_eq!(host.0.json(["daemon", "status"])["sealed"], 1);
    host.0.run(["mount", "sealed", "b:/p"]);
    let sum = "cat /p/x; md5sum < /p/big";
    assert_eq!(host.sh("b", sum), host.sh("a", sum));
    // Whoever asks the store itself has to wait for it.
    host.0.refused(["verify", id]);
    host.0.run(["sync"]);
    host.0.run(["verify", "sealed"]);
    assert_eq!(host.0.json(["daemon", "status"])["sealed"], 0);
    let left = host.0.files_in_state("outbox");
    let notes = |file: &PathBuf| {
        file.ends_with("store.json") || file.parent().is_some_and(|dir| dir.ends_with("seen"))
    };
    assert!(left.iter().all(notes), "{left:?}");
    assert_eq!(host.sh("b", sum), host.sh("a", sum));
}

#[test]
fn secrets_are_in_no_snapshot() {
    let host = Host::new();
    let secret = host.0.path("secret");
    fs::write(&secret, "tell nobody").unwrap();
    host.create("a", &["--secret", &format!("key={}", secret.display())]);
    assert_eq!(host.sh("a", "cat /run/secrets/key"), "tell nobody");
    let taken = host.0.json(["snapshot", "a"]);
    let left = taken["left_out"].as_array().unwrap();
    let left = left.iter().find(|left| left["path"] == "/run/secrets").expect("it is reported");
    assert_eq!(left["why"], "it holds secrets");
    let id = taken["id"].as_str().unwrap();
    let listed = host.0.run(["ls", &format!("{id}:/run/secrets")]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
    // Nor anywhere on this host's disk.
    let state = host.0.inlay.state();
    let found = Command::new("grep")
        .args(["-rlF", "tell nobody"])
        .arg(state.join("sandboxes"))
        .arg("--exclude-dir=secrets")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn excluded_files_are_not_captured() {
    let host = Host::new();
    host.create("a", &[]);
    host.sh(
        "a",
        "mkdir -p /p/node_modules/x /p/src; touch /p/a.log /p/src/b.log /p/src/keep.log /p/c",
    );
    let words = ["--exclude", "node_modules", "--exclude", "*.log", "--exclude", "!keep.log"];
    let id = host.snapshot("a:/p", &words);
    let tree = String::from_utf8(host.0.run(["tree", &id]).stdout).unwrap();
    assert!(tree.contains("keep.log") && tree.contains('c'), "{tree}");
    for gone in ["node_modules", "a.log", "b.log"] {
        assert!(!tree.contains(gone), "{gone}: {tree}");
    }
}

#[test]
fn programs_in_sandboxes_do_not_notice_a_killed_daemon() {
    let host = Host::new();
    host.create("a", &[]);
    host.0.run(["mount", "empty", "a:/work"]);
    host.sh("a", "echo before > /work/file");
    let shown: Value = host.0.json(["sandbox", "inspect", "a"]);
    kill_daemon(&host);
    let again: Value = host.0.json(["sandbox", "inspect", "a"]);
    assert_eq!((&again["pid"], &again["state"]), (&shown["pid"], &"running".into()));
    assert_eq!(host.sh("a", "cat /work/file /etc/release"), "before\n1\n");
    let id = host.snapshot("a:/work", &[]);
    assert_eq!(host.0.cat(&format!("{id}:/file")), b"before\n");
    // The next daemon, which the keeper has started, is as good as the first.
    host.create("b", &[]);
    host.0.run(["mount", &id, "b:/work"]);
    assert_eq!(host.sh("b", "cat /work/file"), "before\n");
}

#[test]
fn a_running_inlay_run_survives_a_killed_daemon() {
    let host = Host::new();
    // It prints all the time, also while there is no daemon.
    let count = "i=0; while [ ! -e /go ]; do i=$((i + 1)); echo $i; sleep 0.005; done; exit 3";
    let mut command = host.0.inlay.command();
    command.args(["run", "--name", "a", "base", "sh", "-c", count]);
    let mut running = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let mut seen = 0;
    let mut see = |until: u32| {
        while seen < until {
            seen += 1;
            assert_eq!(lines.next().unwrap().unwrap(), seen.to_string());
        }
    };
    see(10);
    let mut log = host.0.inlay.command();
    let log = log.args(["logs", "--follow", "a"]).stdout(Stdio::piped()).spawn().unwrap();
    let log = thread::spawn(move || log.wait_with_output().unwrap());
    kill_daemon(&host);
    see(300);
    let mut next = host.0.inlay.command();
    let mut next = next.args(["daemon", "--takeover", "--in-background"]).spawn().unwrap();
    wait::until("the next daemon", || {
        let (daemon, _) = host.0.inlay.daemon_pids().unwrap();
        daemon.as_raw_nonzero().get().cast_unsigned() == next.id()
    });
    see(600);
    // What somebody else runs there is told that it is alone.
    let mut other = host.0.inlay.command();
    other.args(["exec", "a", "--", "sh", "-c", "touch /other; sleep 1000"]);
    let other = other.stderr(Stdio::piped()).spawn().unwrap();
    host.sh("a", "while [ ! -e /other ]; do sleep 0.01; done");
    next.kill().unwrap();
    next.wait().unwrap();
    let other = other.wait_with_output().unwrap();
    let told = String::from_utf8(other.stderr).unwrap();
    assert!(!other.status.success() && told.contains("SIGHUP"), "{told}");
    host.sh("a", "touch /go");
    for line in lines {
        seen += 1;
        assert_eq!(line.unwrap(), seen.to_string());
    }
    assert_eq!(running.wait().unwrap().code(), Some(3));
    let log = log.join().unwrap();
    assert!(log.status.success(), "{log:?}");
    let logged: Vec<_> = (1..=seen).map(|number| format!("{number}\n")).collect();
    assert_eq!(String::from_utf8(log.stdout).unwrap(), logged.concat());
    // Without --rm, the sandbox and what was changed in it are still there.
    assert_eq!(host.0.json(["sandbox", "inspect", "a"])["exit"]["code"], 3);
}

#[test]
fn programs_in_sandboxes_find_signals_as_on_a_new_host() {
    let host = Host::new();
    // The daemon is started by the first command: here, by one that ignores what shells and nohup
    // ignore.
    host.0.run(["daemon", "stop"]);
    let ignoring = r#"trap '' INT QUIT HUP TERM USR1 CHLD; exec "$0" "$@""#;
    let mut command = Command::new("sh");
    let inlay = host.0.inlay.command();
    command.args(["-c", ignoring]).arg(inlay.get_program()).args(inlay.get_args());
    for (name, value) in inlay.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let created = command.args(["sandbox", "create", "base", "--name", "a"]).output().unwrap();
    assert!(created.status.success(), "{created:?}");
    // The next is started by the keeper, which blocks signals.
    kill_daemon(&host);
    host.create("b", &[]);
    for name in ["a", "b"] {
        let first = host.0.json(["sandbox", "inspect", name])["pid"].to_string();
        let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
        // Without the small root's shell, which ignores SIGQUIT.
        let inside = host.exec(&[name, "--", "cat", "/proc/self/status"]).text();
        for status in [&status, &inside] {
            let mask = |field: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
                u64::from_str_radix(line.trim(), 16).unwrap()
            };
            assert_eq!(mask("SigBlk:") & STANDARD_SIGNALS, 0, "{name}: {status}");
            assert_eq!(mask("SigIgn:") & STANDARD_SIGNALS, 0, "{name}: {status}");
        }
    }
}

#[test]
fn stopping_can_take_a_snapshot_and_keeps_changes() {
    let host = Host::new();
    host.create("a", &[]);
    host.0.run(["mount", "empty", "a:/work"]);
    host.sh("a", "echo x > /work/file; echo y > /y");
    let stopped = host.0.json(["sandbox", "stop", "--snapshot", "/work", "--name", "last", "a"]);
    assert_eq!(stopped["sandbox"]["state"], "stopped");
    assert_eq!(host.0.cat("last:/file"), b"x\n");
    // A stopped sandbox can still be captured.
    let work = host.snapshot("a:/work", &[]);
    assert_eq!(host.0.cat(&format!("{work}:/file")), b"x\n");
    let root = host.snapshot("a", &[]);
    assert_eq!(host.0.cat(&format!("{root}:/y")), b"y\n");
    assert!(!host.exec(&["a", "--", "ls"]).status.success());
}

#[test]
fn a_sandbox_runs_as_its_image_and_its_options_say() {
    let host = Host::new();
    host.create("a", &["--env", "A=1", "--user", "app", "--workdir", "/home", "--label", "team=x"]);
    assert_eq!(host.sh("a", "id -u; pwd; echo $A"), "1000\n/home\n1\n");
    let ran = host.exec(&[
        "--user",
        "root",
        "--workdir",
        "/etc",
        "--env",
        "B=2",
        "a",
        "--",
        "sh",
        "-c",
        "id -u; pwd; echo $A$B; exit 7",
    ]);
    assert_eq!(ran.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "0\n/etc\n12\n");
    // As shells have it: 127 where there is no such program, 126 where it can't be run.
    for (program, code) in [("absent", 127), ("/absent", 127), ("/etc/release", 126)] {
        let ran = host.exec(&["a", "--", program]);
        assert_eq!(ran.status.code(), Some(code), "{ran:?}");
        assert!(ran.stderr.contains(program), "{ran:?}");
        let ran = host.0.inlay.run(["run", "--rm", "base", program]).unwrap();
        assert_eq!(ran.status.code(), Some(code), "{ran:?}");
        assert!(ran.stderr.contains(program), "{ran:?}");
    }
    assert_eq!(host.0.json(["sandbox", "ls"]).as_array().unwrap().len(), 1);
    let mut command = host.0.inlay.command();
    command.args(["exec", "-i", "a", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut cat = command.spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"through");
    assert_eq!(host.0.json(["sandbox", "ls", "--label", "team=x"]).as_array().unwrap().len(), 1);
    assert_eq!(host.0.json(["sandbox", "ls", "--label", "team=y"]).as_array().unwrap().len(), 0);
    let refused = host.0.refused(["sandbox", "create", "base", "--name", "a"]);
    assert!(refused.contains("taken"), "{refused}");
}

#[test]
fn the_output_of_the_first_program_is_kept() {
    let host = Host::new();
    let ran =
        host.0.inlay.run(["run", "base", "sh", "-c", "echo out; echo err >&2; exit 3"]).unwrap();
    assert_eq!(ran.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "out\n");
    let listed = host.0.json(["sandbox", "ls"]);
    let name = listed[0]["name"].as_str().unwrap();
    let logs = host.0.run(["logs", name]);
    assert_eq!(
        (String::from_utf8_lossy(&logs.stdout).as_ref(), logs.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(listed[0]["exit"]["code"], 3);
}

#[test]
fn slow_readers_get_all_output() {
    let host = Host::new();
    // Much more than there is room for between the two.
    let count = "i=0; while [ $i -lt 100000000 ]; do i=$((i + 1)); echo line number $i; done";
    let mut command = host.0.inlay.command();
    command.args(["run", "--rm", "--name", "a", "base", "sh", "-c", count]);
    let mut reader = command.stdout(Stdio::piped()).spawn().unwrap();
    let printed = || host.0.inlay.run(["logs", "--tail", "1", "a"]).unwrap().stdout;
    let mut before = Vec::new();
    wait::until("the program to wait for its reader", || {
        thread::sleep(Duration::from_millis(300));
        let now = printed();
        let still = !now.is_empty() && now == before;
        before = now;
        still
    });
    host.0.run(["sandbox", "rm", "--force", "a"]);
    assert_eq!(host.0.json(["sandbox", "ls"]), serde_json::json!([]));
    let mut text = String::new();
    reader.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(reader.wait().unwrap().code(), Some(137));
    // The last line is cut where the program was.
    let whole = &text[..=text.rfind('\n').unwrap()];
    for (number, line) in (1_u32..).zip(whole.lines()) {
        assert_eq!(line, format!("line number {number}"));
    }
    assert!(text.contains(std::str::from_utf8(&before).unwrap().trim_end()), "{before:?}");
}

#[test]
fn files_are_copied_in_and_out() {
    let host = Host::new();
    host.create("a", &[]);
    host.0.run(["mount", "empty", "a:/work"]);
    let file = host.0.path("file");
    fs::write(&file, "here").unwrap();
    let from = file.to_str().unwrap();
    host.0.run(["cp", from, "a:/work"]);
    assert_eq!(host.sh("a", "cat /work/file; stat -c %u /work/file"), "here0\n");
    host.sh("a", "mkdir /work/d; echo there > /work/d/f");
    let to = host.0.path("out");
    host.0.run(["cp", "a:/work/d", to.to_str().unwrap()]);
    assert_eq!(fs::read(to.join("f")).unwrap(), b"there\n");
    let refused = host.0.refused(["cp", "a:/nothing", to.to_str().unwrap()]);
    assert!(refused.contains("/nothing"), "{refused}");
}

#[test]
fn a_snapshot_is_mounted_into_any_container() {
    let host = Host::new();
    host.0.write("only/above", "above\n");
    let only = host.0.tree().join("only");
    let source = format!("dir:{}", only.display());
    host.0.import_as(&source, &["--name", "above", "--kind", "directory"]);
    // A container of somebody else's: a process in a mount namespace of its own.
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sleep", "600"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = other.id().to_string();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    wait::until("the other mount namespace", || {
        fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap() != own
    });
    let target = host.0.path("inside/made");
    let mounted =
        host.0.inlay.run(["mount", "--pid", &pid, "above", target.to_str().unwrap()]).unwrap();
    let seen = fs::read(format!("/proc/{pid}/root{}/above", target.display()));
    let here = target.join("above").exists();
    let unmounted = host.0.inlay.run(["umount", "--pid", &pid, target.to_str().unwrap()]).unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(mounted.status.success(), "{mounted:?}");
    assert_eq!((seen.unwrap(), here), (b"above\n".to_vec(), false));
    assert!(unmounted.status.success() && !target.exists(), "{unmounted:?}");
}

#[test]
fn removing_a_sandbox_leaves_nothing() {
    let host = Host::new();
    host.create("a", &["--memory", "64M", "--pids", "50", "--disk", "64M"]);
    host.0.run(["mount", "empty", "a:/work"]);
    let id = host.0.json(["sandbox", "inspect", "a"])["id"].as_str().unwrap().to_owned();
    let refused = host.0.refused(["sandbox", "rm", "a"]);
    assert!(refused.contains("is running"), "{refused}");
    let full = host.exec(&["a", "--", "dd", "if=/dev/zero", "of=/full", "bs=1M", "count=100"]);
    assert!(!full.status.success() && full.stderr.contains("No space"), "{full:?}");
    host.0.run(["sandbox", "rm", "--force", "a"]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&id), "{mounts}");
    assert!(!host.0.inlay.state().join("sandboxes").join(&id).exists());
    let groups = Command::new("find").args(["/sys/fs/cgroup", "-name", &id]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&groups.stdout), "");
    assert_eq!(leftover::loop_devices(host.0.inlay.state()), Vec::<PathBuf>::new());
}
