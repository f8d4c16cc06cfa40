//! Sandboxes that swap, grow and block: nothing of the host is reached, and nobody waits for ever.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::boxes::{Boxes, wait_for};
use crate::common::local;

/// How often something is tried while the sandbox works against it.
const ROUNDS: usize = 25;
/// How long one try may take, generously: none of them waits for the sandbox.
const ONE_TRY: Duration = Duration::from_mins(1);
/// More than a daemon of a few sandboxes ever needs, in KiB.
const MEMORY_KIB: u64 = 700 << 10;

/// A program that goes on until the test ends.
struct Loop(Child);

impl Loop {
    fn start(boxes: &Boxes, sandbox: &str, script: &str) -> Self {
        let mut command = boxes.inlay.command();
        command.args(["exec", sandbox, "--", "sh", "-c", script]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of this host that no sandbox may reach, with a file of a name that none has.
fn forbidden(boxes: &Boxes) -> PathBuf {
    let dir = boxes.path("forbidden");
    fs::create_dir_all(dir.join("in")).unwrap();
    fs::write(dir.join("only-here"), "the host's").unwrap();
    fs::write(dir.join("in/only-here"), "the host's").unwrap();
    dir
}

fn assert_untouched(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(dir.to_str().unwrap()), "{table}");
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["in", "only-here"]);
    assert_eq!(fs::read_dir(dir.join("in")).unwrap().count(), 1);
}

/// Makes `/p` and a link to the host's path change places all the time.
fn swapping(dir: &Path) -> String {
    // Each of the two is at the name for some time.
    format!(
        "mkdir -p /p/in /q; echo mine > /p/file; while :; do mv /p /q/p; ln -s {up}{dir} /p; \
         rm /p; ln -s /proc/1/root{dir} /p; rm /p; mv /q/p /p; done",
        up = "/..".repeat(12),
        dir = dir.display(),
    )
}

#[test]
fn a_directory_that_becomes_a_link_leads_no_mount_out() {
    let boxes = Boxes::new(local());
    let dir = forbidden(&boxes);
    boxes.create("a", &[]);
    let _loop = Loop::start(&boxes, "a", &swapping(&dir));
    wait_for("the loop", || boxes.run(&["exec", "a", "--", "ls", "/q"]).status.success());
    let mut mounted = 0;
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let ran = boxes.run(&["mount", "data", "a:/p/in"]);
        assert!(begun.elapsed() < ONE_TRY);
        assert_untouched(&dir);
        if ran.status.success() {
            mounted += 1;
        } else {
            assert!(ran.stderr.starts_with("inlay: "), "{round}: {ran:?}");
        }
        for shown in boxes.json(&["sandbox", "inspect", "a"])["mounts"].as_array().unwrap() {
            let at = format!("a:{}", shown["path"].as_str().unwrap());
            boxes.run(&["umount", "--lazy", &at]);
        }
        assert_untouched(&dir);
    }
    println!("{mounted} of {ROUNDS} mounts were made");
    boxes.assert_clean("a mount on a directory that is swapped");
}

#[test]
fn a_directory_that_becomes_a_link_leads_no_capture_out() {
    let boxes = Boxes::new(local());
    let dir = forbidden(&boxes);
    boxes.create("a", &[]);
    let _loop = Loop::start(&boxes, "a", &swapping(&dir));
    wait_for("the loop", || boxes.run(&["exec", "a", "--", "ls", "/q"]).status.success());
    let mut taken = 0;
    for place in ["a:/p", "a:/p/in", "a:/"].into_iter().cycle().take(ROUNDS) {
        let begun = Instant::now();
        let ran = boxes.run(&["snapshot", place, "--json"]);
        assert!(begun.elapsed() < ONE_TRY);
        if !ran.status.success() {
            assert!(ran.stderr.starts_with("inlay: "), "{place}: {ran:?}");
            continue;
        }
        taken += 1;
        let answer: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        let id = answer["id"].as_str().unwrap();
        for name in ["only-here", "in/only-here", "p/only-here", "p/in/only-here"] {
            assert!(!boxes.run(&["cat", &format!("{id}:/{name}")]).status.success(), "{place}");
        }
    }
    println!("{taken} of {ROUNDS} snapshots were taken");
    assert_untouched(&dir);
    boxes.assert_clean("a capture of a directory that is swapped");
}

#[test]
fn paths_stay_in_the_root() {
    let boxes = Boxes::new(local());
    boxes.create("a", &[]);
    // `..` of the root is the root.
    boxes.succeed(&["mount", "data", "a:/../../../etc/inlay-hostile"]);
    assert!(!Path::new("/etc/inlay-hostile").exists());
    assert_eq!(boxes.sh("a", "cat /etc/inlay-hostile/file"), "x");
    boxes.succeed(&["umount", "a:/../../../etc/inlay-hostile"]);
    // A link that the kernel follows by magic is followed by nobody.
    boxes.sh("a", "ln -s /proc/1/root /magic; ln -s ../../../../etc /up");
    for words in [&["mount", "data", "a:/magic/m"][..], &["snapshot", "a:/magic"]] {
        let ran = boxes.run(words);
        assert!(!ran.status.success() && ran.stderr.contains("/magic"), "{ran:?}");
    }
    assert!(!Path::new("/m").exists());
    boxes.succeed(&["mount", "data", "a:/up/inlay-hostile"]);
    assert!(!Path::new("/etc/inlay-hostile").exists());
    let taken = boxes.snapshot("a:/up");
    assert_eq!(boxes.cat(&format!("{taken}:/inlay-hostile/file")), "x");
    assert_eq!(boxes.cat(&format!("{taken}:/passwd")), "root:x:0:0::/:/bin/sh\n");
    boxes.assert_clean("paths");
}

#[test]
fn mounts_and_snapshots_of_non_directories_fail_without_blocking() {
    let boxes = Boxes::new(local());
    boxes.create("a", &[]);
    boxes.sh("a", "mkdir /work; mkfifo /work/fifo; mknod /work/null c 1 3; echo f > /work/file");
    for (name, what) in [("fifo", "a FIFO"), ("null", "a device"), ("file", "a file")] {
        for at in [format!("a:/work/{name}"), format!("a:/work/{name}/below")] {
            let ran = boxes.run(&["mount", "data", &at]);
            assert!(!ran.status.success() && ran.stderr.contains(what), "{ran:?}");
        }
        let ran = boxes.run(&["snapshot", &format!("a:/work/{name}")]);
        assert!(!ran.status.success() && ran.stderr.contains("director"), "{ran:?}");
    }
    // They are taken as what they are; none is opened.
    let taken = boxes.snapshot("a:/work");
    boxes.create("b", &["--mount", &format!("{taken}:/work")]);
    let kinds = boxes.sh("b", "stat -c '%n %F' /work/fifo /work/null");
    assert_eq!(kinds, "/work/fifo fifo\n/work/null character special file\n");
    boxes.assert_clean("what is in the way");
}

#[test]
fn a_file_that_grows_without_end_is_captured_as_it_was() {
    let boxes = Boxes::new(local());
    boxes.create("a", &["--disk", "600M"]);
    boxes.sh("a", "mkdir /work");
    let _loop = Loop::start(&boxes, "a", "while cat /bin/busybox >> /work/big; do :; done");
    let size = || boxes.sh("a", "stat -c %s /work/big 2>/dev/null || echo 0");
    wait_for("the first bytes", || size().trim().parse::<u64>().unwrap() > 4 << 20);
    let program = fs::read(boxes.path("root/bin/busybox")).unwrap();
    for _ in 0..2 {
        let ran = boxes.run(&["snapshot", "a:/work", "--json"]);
        if !ran.status.success() {
            // It may say that it is not fast enough, and no more.
            assert!(ran.stderr.contains("/big") || ran.stderr.contains("big "), "{ran:?}");
            continue;
        }
        let answer: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        let id = answer["id"].as_str().unwrap();
        let bytes = boxes.succeed(&["cat", &format!("{id}:/big")]).stdout;
        assert!(!bytes.is_empty());
        let whole = bytes.chunks(program.len()).all(|chunk| program.starts_with(chunk));
        assert!(whole, "the snapshot holds what the file never held");
    }
    assert_eq!(boxes.sh("a", "echo alive"), "alive\n");
    assert!(daemon_memory(&boxes) < MEMORY_KIB, "{} KiB", daemon_memory(&boxes));
    boxes.assert_clean("a file that grows");
}

/// The most that the daemon ever had in memory, in KiB.
fn daemon_memory(boxes: &Boxes) -> u64 {
    let (daemon, _) = boxes.inlay.daemon_pids().unwrap();
    let mut status = String::new();
    let path = format!("/proc/{}/status", daemon.as_raw_nonzero());
    fs::File::open(path).unwrap().read_to_string(&mut status).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn many_files_are_against_the_limit_of_its_disk_and_not_of_this_host() {
    let boxes = Boxes::new(local());
    boxes.create("a", &["--disk", "32M"]);
    boxes.sh(
        "a",
        "mkdir /work; i=0; while touch /work/$i-0 /work/$i-1 /work/$i-2 /work/$i-3 \
                   2>/dev/null && [ $i -lt 20000 ]; do i=$((i+1)); done",
    );
    let taken = boxes.json(&["snapshot", "a:/work"]);
    let count: u64 = boxes.sh("a", "find /work -type f | wc -l").trim().parse().unwrap();
    assert_eq!(
        taken["record"]["counts"]["files"].as_u64().or(taken["counts"]["files"].as_u64()),
        Some(count),
        "{taken}"
    );
    assert!(count < 80_000, "{count}");
    assert!(daemon_memory(&boxes) < MEMORY_KIB);
    boxes.assert_clean("many files");
}
