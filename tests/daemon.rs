//! Daemons that die, are replaced and come back, while programs work in what they serve. They need
//! root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use common::{import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::{content, scratch};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

/// A program that is killed should it outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const FILES: usize = 60;

/// Small and large files, and a program.
fn base(inlay: &Inlay) -> TempDir {
    let dir = scratch().unwrap();
    let tree = dir.path().join("tree");
    for number in 0..FILES {
        let parent = tree.join(format!("dir-{}", number % 7));
        fs::create_dir_all(&parent).unwrap();
        let len = if number % 10 == 0 { 3 << 20 } else { 500 + number * 97 };
        fs::write(parent.join(format!("file-{number}")), content::random("x", len)).unwrap();
    }
    fs::create_dir(tree.join("bin")).unwrap();
    fs::copy("/usr/bin/cat", tree.join("bin/cat")).unwrap();
    import(inlay, &of("dir", &tree), "base");
    dir
}

fn files(below: &Path) -> Vec<PathBuf> {
    (0..FILES).map(|n| below.join(format!("dir-{}/file-{n}", n % 7))).collect()
}

/// Kills the daemon, and waits until it is dead and the next one answers.
fn kill_daemon(inlay: &Inlay) {
    let (daemon, _) = inlay.daemon_pids().unwrap();
    let process = pidfd_open(daemon, PidfdFlags::empty()).unwrap();
    kill_process(daemon, Signal::KILL).unwrap();
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
    inlay.wait_for_daemon().unwrap();
}

fn takeover(inlay: &Inlay) -> Running {
    let (before, _) = inlay.daemon_pids().unwrap();
    let process = pidfd_open(before, PidfdFlags::empty()).unwrap();
    let mut next = inlay.command();
    next.args(["daemon", "--takeover", "--idle-exit", "0", "--state"]).arg(inlay.state());
    let next = Running(next.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
    inlay.wait_for_daemon().unwrap();
    assert_eq!(inlay.daemon_pids().unwrap().0, Pid::from_child(&next.0));
    next
}

#[test]
fn reads_and_writes_survive_daemons_killed_under_load() {
    let inlay = local();
    let dir = base(&inlay);
    let tree = dir.path().join("tree");
    let mounted = inlay.mount("base", &["--rw"]).unwrap();
    let (enough, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..3 {
            let (tree, mounted, enough, rounds) = (&tree, &mounted, &enough, &rounds);
            scope.spawn(move || {
                let pairs = files(tree).into_iter().zip(files(mounted.path()));
                let pairs: Vec<_> = pairs.collect();
                while !enough.load(Relaxed) {
                    for number in 0..FILES {
                        let (want, have) = &pairs[(number * (reader + 1) + reader) % FILES];
                        assert!(fs::read(want).unwrap() == fs::read(have).unwrap(), "{have:?}");
                        rounds.fetch_add(1, Relaxed);
                    }
                    let listed = fs::read_dir(mounted.path().join("dir-3")).unwrap().count();
                    assert_eq!(listed, fs::read_dir(tree.join("dir-3")).unwrap().count());
                }
            });
        }
        let (writing, enough_writing) = (&mounted, &enough);
        scope.spawn(move || {
            let mut number = 0;
            while !enough_writing.load(Relaxed) {
                let path = writing.path().join(format!("dir-1/new-{number}"));
                fs::write(&path, number.to_string()).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), number.to_string());
                number += 1;
            }
        });
        for _ in 0..8 {
            // So that each of them is killed while it is asked.
            let before = rounds.load(Relaxed);
            inlay_testkit::wait::until("readers to go on", || rounds.load(Relaxed) >= before + 20);
            kill_daemon(&inlay);
        }
        enough.store(true, Relaxed);
    });
    assert!(mounted.path().join("dir-1/new-0").exists());
    mounted.unmount().unwrap();
    inlay.wait_until_quiet().unwrap();
}

#[test]
fn a_program_of_the_mount_runs_on_through_takeovers_and_deaths() {
    let inlay = local();
    let _dir = base(&inlay);
    for options in [&[][..], &["--rw", "--scratch"]] {
        let mounted = inlay.mount("base", options).unwrap();
        let program = mounted.path().join("bin/cat");
        let cat = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut cat = Running(cat.unwrap());
        let mut said = BufReader::new(cat.0.stdout.take().unwrap());
        let mut daemons = Vec::new();
        for round in 0..4 {
            if round % 2 == 0 {
                daemons.push(takeover(&inlay));
            } else {
                kill_daemon(&inlay);
            }
            let mut line = String::new();
            writeln!(cat.0.stdin.as_mut().unwrap(), "round {round}").unwrap();
            said.read_line(&mut line).unwrap();
            assert_eq!(line, format!("round {round}\n"));
            // And it can be started anew.
            let again = Command::new(&program).arg(&program).output().unwrap();
            assert!(again.stdout == fs::read("/usr/bin/cat").unwrap());
        }
        drop(cat.0.stdin.take());
        assert!(cat.0.wait().unwrap().success());
        mounted.unmount().unwrap();
        inlay.wait_until_quiet().unwrap();
    }
}

#[test]
fn lazily_unmounted_files_are_served_by_the_next_daemon() {
    let inlay = local();
    let dir = base(&inlay);
    let want = fs::read(dir.path().join("tree/dir-3/file-10")).unwrap();
    for options in [&[][..], &["--rw", "--scratch"]] {
        // Another mount of the same snapshot, or none: both ways the open file is read to its end.
        for others in [0, 1] {
            let mounted = inlay.mount("base", options).unwrap();
            let other = (others == 1).then(|| inlay.mount("base", options).unwrap());
            let mut open = File::open(mounted.path().join("dir-3/file-10")).unwrap();
            let mut read = vec![0; 1 << 20];
            open.read_exact(&mut read).unwrap();
            inlay
                .succeed(["umount".as_ref(), "--lazy".as_ref(), mounted.path().as_os_str()])
                .unwrap();
            kill_daemon(&inlay);
            assert_eq!(inlay.daemon_status().unwrap()["mounts"], others);
            open.read_to_end(&mut read).unwrap();
            assert!(read == want);
            kill_daemon(&inlay);
            drop(open);
            if let Some(other) = other {
                assert!(fs::read(other.path().join("dir-3/file-10")).unwrap() == want);
                other.unmount().unwrap();
            }
            inlay.wait_until_quiet().unwrap();
            for left in ["mounts", "attached", "upper"] {
                let Ok(entries) = fs::read_dir(inlay.state().join(left)) else { continue };
                assert_eq!(entries.count(), 0, "{left}");
            }
            drop(mounted);
        }
    }
}

#[test]
fn a_snapshot_that_was_attached_before_is_shared_after_a_restart() {
    let inlay = local();
    let _dir = base(&inlay);
    let first = inlay.mount("base", &[]).unwrap();
    kill_daemon(&inlay);
    let second = inlay.mount("base", &[]).unwrap();
    assert_eq!(inlay.daemon_status().unwrap()["attached"], 1);
    first.unmount().unwrap();
    kill_daemon(&inlay);
    assert_eq!(fs::read_dir(second.path().join("bin")).unwrap().count(), 1);
    second.unmount().unwrap();
    inlay.wait_until_quiet().unwrap();
}

#[test]
fn a_terminal_that_is_closed_does_not_end_the_daemon() {
    let inlay = local();
    let dir = base(&inlay);
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let command = inlay.command();
    let mut session = Command::new("setsid");
    session.args(["--wait", "sh", "-c", "\"$@\" && kill -HUP 0", "sh"]);
    session.arg(command.get_program()).args(["mount", "base"]).arg(&mnt);
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            session.env(name, value);
        }
    }
    session.stdout(Stdio::null()).status().unwrap();
    assert!(mnt.join("bin/cat").exists());
    let (daemon, keeper) = inlay.daemon_pids().unwrap();
    for pid in [daemon, keeper] {
        let pid = pid.as_raw_nonzero().to_string();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let after_name = stat.rsplit(") ").next().unwrap();
        assert_eq!(after_name.split(' ').nth(3), Some(&*pid), "a session of its own");
    }
    inlay.succeed(["umount".as_ref(), mnt.as_os_str()]).unwrap();
    inlay.wait_until_quiet().unwrap();
}

#[test]
fn a_keeper_that_learns_of_a_clean_exit_late_starts_no_daemon() {
    let inlay = local();
    let _dir = base(&inlay);
    inlay.mount("base", &[]).unwrap().unmount().unwrap();
    inlay.wait_until_quiet().unwrap();
    let mut daemon = inlay.command();
    daemon.args(["daemon", "--state"]).arg(inlay.state());
    let mut daemon = Running(daemon.stdout(Stdio::null()).spawn().unwrap());
    inlay.wait_for_daemon().unwrap();
    let (pid, keeper) = inlay.daemon_pids().unwrap();
    // It finds its orders and the daemon's death at once.
    kill_process(keeper, Signal::STOP).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = daemon.0.wait().unwrap();
    kill_process(keeper, Signal::CONT).unwrap();
    assert!(ended.success());
    inlay.wait_until_quiet().unwrap();
    let log = inlay.daemon_log();
    assert!(!log.contains("started another"), "{log}");
}

#[test]
fn a_log_that_can_not_be_written_stops_nothing() {
    let inlay = local();
    let _dir = base(&inlay);
    let mut daemon = inlay.command();
    daemon.args(["--log", "debug", "daemon", "--state"]).arg(inlay.state());
    // As on a full disk.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut daemon = Running(daemon.stdout(Stdio::null()).stderr(full).spawn().unwrap());
    inlay.wait_for_daemon().unwrap();
    let mount = inlay.mount("base", &[]).unwrap();
    assert_eq!(inlay.daemon_pids().unwrap().0.as_raw_nonzero().get().unsigned_abs(), daemon.0.id());
    mount.unmount().unwrap();
    inlay.succeed(["daemon", "stop"]).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    inlay.wait_until_quiet().unwrap();
}
