//! Mounts of a daemon that is a service: the service manager keeps their descriptors, so that they
//! outlive daemon and keeper. They need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Parser;
use common::boxes::Boxes;
use common::{import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::service::{Manager, Service, Stored, unit_values};
use inlay_testkit::{content, scratch};
use inlayfs::cli::Cli;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

const UNIT: &str = include_str!("../dist/systemd/inlay.service");
/// What systemd knows from version 254 on.
const LATER: &str = include_str!("../dist/systemd/inlay.service.d/254.conf");

/// What is stored of a session, sorted.
const NAMES: [&str; 6] = [
    "inlay-general",
    "inlay-ledger",
    "inlay-no-xattrs",
    "inlay-open-less",
    "inlay-plain",
    "inlay-session",
];

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

const FILES: usize = 40;

/// The words of the unit's command, without the program.
fn unit_words() -> Vec<&'static str> {
    let values = unit_values(UNIT, "Service");
    let (_, command) = values.iter().find(|(name, _)| *name == "ExecStart").unwrap();
    let mut words = command.split_whitespace();
    assert_eq!(words.next(), Some("/usr/bin/inlay"));
    words.collect()
}

#[test]
fn the_unit_keeps_the_daemons_descriptors() {
    let words = unit_words();
    assert_eq!(words[0], "daemon");
    Cli::try_parse_from([&["inlay"], &words[..]].concat()).unwrap();
    let values: BTreeMap<_, _> = unit_values(UNIT, "Service").into_iter().collect();
    assert_eq!(values["Type"], "notify");
    assert!(values["FileDescriptorStoreMax"].parse::<usize>().unwrap() >= NAMES.len());
    let later: BTreeMap<_, _> = unit_values(LATER, "Service").into_iter().collect();
    assert_eq!(later["FileDescriptorStorePreserve"], "yes");
}

/// A service with a state of its own, in which `base` is imported.
struct Host {
    inlay: Inlay,
    manager: Manager,
    tree: TempDir,
}

impl Host {
    fn new() -> Self {
        let (inlay, tree) = (local(), scratch().unwrap());
        for number in 0..FILES {
            let dir = tree.path().join(format!("dir-{}", number % 5));
            fs::create_dir_all(&dir).unwrap();
            let len = if number % 10 == 0 { 2 << 20 } else { 300 + number * 97 };
            fs::write(dir.join(format!("file-{number}")), content::random("x", len)).unwrap();
        }
        import(&inlay, &of("dir", tree.path()), "base");
        Self { inlay, manager: Manager::new().unwrap(), tree }
    }

    /// Starts the service as the unit does.
    fn start(&self) -> Service {
        let mut command = self.inlay.command();
        // The state is in the words, too, so that what is left can be found.
        command.args(unit_words()).arg("--state").arg(self.inlay.state());
        let mut service = self.manager.start(&command).unwrap();
        service.wait_until_ready().unwrap();
        service
    }

    fn session(&self) -> String {
        self.inlay.daemon_status().unwrap()["session"].as_str().unwrap().to_owned()
    }

    /// Sends keeper and daemon a signal, the keeper first, and waits until both have ended.
    fn end_both(&self, signal: Signal) {
        let (daemon, keeper) = self.inlay.daemon_pids().unwrap();
        for pid in [keeper, daemon] {
            end(pid, signal);
        }
    }

    fn file(&self, below: &Path, number: usize) -> (PathBuf, PathBuf) {
        let name = format!("dir-{}/file-{number}", number % 5);
        (self.tree.path().join(&name), below.join(name))
    }

    fn assert_same(&self, below: &Path) {
        for number in 0..FILES {
            let (want, have) = self.file(below, number);
            assert!(fs::read(want).unwrap() == fs::read(&have).unwrap(), "{}", have.display());
        }
    }

    /// Ends the session, after which nothing is kept and nothing left.
    fn stop(self, mut service: Service) {
        self.inlay.succeed(["daemon", "stop"]).unwrap();
        assert!(service.wait().unwrap().success());
        assert!(self.manager.names().is_empty(), "{:?}", self.manager.names());
        self.inlay.wait_until_quiet().unwrap();
    }
}

fn end(pid: Pid, signal: Signal) {
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, signal).unwrap();
    let limit = Timespec::try_from(PATIENCE).unwrap();
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "{pid:?} does not end");
}

fn inodes(below: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![below.to_owned()];
    while let Some(path) = waiting.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, stat.ino());
    }
    found
}

/// A program that reads in a mount until it is told to stop. Any error ends its test.
struct Reader {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn of(host: &Host, below: &Path) -> Self {
        let files: Vec<_> = (0..FILES).map(|number| host.file(below, number)).collect();
        let files: Vec<_> =
            files.into_iter().map(|(want, have)| (fs::read(want).unwrap(), have)).collect();
        let (stop, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (enough, done, below) = (Arc::clone(&stop), Arc::clone(&steps), below.to_owned());
        let read = move || {
            for number in 0.. {
                if enough.load(Relaxed) {
                    return;
                }
                let (want, path) = &files[number % FILES];
                let mut file = File::open(path).unwrap();
                // So that the bytes have to come again.
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                let mut have = Vec::new();
                file.read_to_end(&mut have).unwrap();
                assert!(have == *want, "{}", path.display());
                // A name of its own each time, so that it has to be asked for.
                let absent = fs::symlink_metadata(below.join(format!("absent-{number}")));
                assert_eq!(absent.unwrap_err().kind(), std::io::ErrorKind::NotFound);
                done.fetch_add(1, Relaxed);
            }
        };
        Self { stop, steps, thread: Some(thread::spawn(read)) }
    }

    /// Waits until it has done so much more, and has had no error.
    fn goes_on(&self) {
        let (target, start) = (self.steps.load(Relaxed) + 30, Instant::now());
        while self.steps.load(Relaxed) < target {
            assert!(!self.thread.as_ref().unwrap().is_finished(), "a read failed");
            assert!(start.elapsed() < PATIENCE, "a program hangs");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop(mut self) {
        self.stop.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

#[test]
fn programs_do_not_notice_that_keeper_and_daemon_are_killed() {
    let host = Host::new();
    let mut service = host.start();
    assert_eq!(host.manager.names(), NAMES);
    host.manager.with_stored(|stored| assert!(stored.iter().all(|stored| !stored.polled)));
    let session = host.session();
    let mounts = [&[][..], &["--rw"]].map(|options| host.inlay.mount("base", options).unwrap());
    let readers = mounts.each_ref().map(|mounted| Reader::of(&host, mounted.path()));
    let opened = mounts.each_ref().map(|mounted| {
        let mut file = File::open(host.file(mounted.path(), 10).1).unwrap();
        let mut read = vec![0; 64 << 10];
        file.read_exact(&mut read).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        (file, read)
    });
    let before = mounts.each_ref().map(|mounted| inodes(mounted.path()));
    for round in 0..6 {
        readers.iter().for_each(Reader::goes_on);
        let pids = host.inlay.daemon_pids().unwrap();
        // As an OOM killer does, and as a service manager that stops a control group does.
        host.end_both(if round % 2 == 0 { Signal::KILL } else { Signal::TERM });
        service = host.start();
        let now = host.inlay.daemon_pids().unwrap();
        assert_eq!(now.0, service.pid());
        assert_ne!(now.1, pids.1);
        assert_eq!(host.session(), session);
        assert_eq!(host.manager.names(), NAMES, "nothing is kept twice");
    }
    readers.iter().for_each(Reader::goes_on);
    readers.into_iter().for_each(Reader::stop);
    for (mut file, mut read) in opened {
        file.read_to_end(&mut read).unwrap();
        assert!(read == fs::read(host.file(Path::new(""), 10).0).unwrap());
    }
    for (mounted, before) in mounts.iter().zip(before) {
        assert_eq!(inodes(mounted.path()), before);
        host.assert_same(mounted.path());
    }
    fs::write(mounts[1].path().join("new"), "new").unwrap();
    for mounted in mounts {
        mounted.unmount().unwrap();
    }
    host.stop(service);
}

#[test]
fn a_service_takes_the_place_of_the_daemon_that_the_keeper_has_started() {
    let host = Host::new();
    let service = host.start();
    let session = host.session();
    let mounted = host.inlay.mount("base", &[]).unwrap();
    let reader = Reader::of(&host, mounted.path());
    let (_, keeper) = host.inlay.daemon_pids().unwrap();
    end(service.pid(), Signal::KILL);
    host.inlay.wait_for_daemon().unwrap();
    let service = host.start();
    assert_eq!(host.inlay.daemon_pids().unwrap(), (service.pid(), keeper));
    assert_eq!((host.session(), host.manager.names()), (session, NAMES.map(str::to_owned).into()));
    reader.goes_on();
    reader.stop();
    mounted.unmount().unwrap();
    host.stop(service);
}

#[test]
fn a_daemon_that_was_there_before_the_service_is_kept_from_then_on() {
    let host = Host::new();
    let mounted = host.inlay.mount("base", &[]).unwrap();
    let session = host.session();
    let reader = Reader::of(&host, mounted.path());
    drop(host.start());
    assert_eq!(host.manager.names(), NAMES);
    host.end_both(Signal::KILL);
    let service = host.start();
    assert_eq!(host.session(), session);
    reader.goes_on();
    reader.stop();
    mounted.unmount().unwrap();
    host.stop(service);
}

#[test]
fn a_daemon_that_has_lost_its_keeper_is_followed_by_the_service() {
    let host = Host::new();
    let mut first = host.start();
    let session = host.session();
    let mounted = host.inlay.mount("base", &[]).unwrap();
    let reader = Reader::of(&host, mounted.path());
    let (_, keeper) = host.inlay.daemon_pids().unwrap();
    end(keeper, Signal::KILL);
    reader.goes_on();
    // It serves still: none must answer beside it, or begin anew in its place.
    let ran = host.inlay.fail(["daemon", "--takeover"]).unwrap();
    assert!(ran.stderr.contains("has lost its keeper"), "{ran:?}");
    let second = host.start();
    assert!(!first.wait().unwrap().success());
    assert_eq!((host.session(), host.inlay.daemon_pids().unwrap().0), (session, second.pid()));
    assert!(host.inlay.daemon_log().contains("still serves"));
    reader.goes_on();
    reader.stop();
    mounted.unmount().unwrap();
    host.stop(second);
}

fn stored(name: &str, file: impl Into<std::os::fd::OwnedFd>) -> Stored {
    Stored { name: name.to_owned(), polled: false, descriptor: file.into() }
}

/// What can be wrong with what comes back, and what the log says about it.
fn spoil(host: &Host, how: usize) -> &'static str {
    host.manager.with_stored(|kept| {
        let place = |name: &str, kept: &[Stored]| kept.iter().position(|s| s.name == name).unwrap();
        match how {
            0 => {
                kept.remove(place("inlay-ledger", kept));
                "'inlay-ledger' is missing"
            }
            1 => {
                let again = kept[place("inlay-plain", kept)].descriptor.try_clone().unwrap();
                kept.push(stored("inlay-plain", again));
                "'inlay-plain' occurs more than once"
            }
            2 => {
                let place = place("inlay-session", kept);
                kept[place] = stored("inlay-session", File::open("/dev/null").unwrap());
                "'inlay-session' can't be read"
            }
            3 => {
                let place = place("inlay-no-xattrs", kept);
                kept[place] = stored("inlay-no-xattrs", File::open("/dev/zero").unwrap());
                "the descriptor named for the no-xattrs connection is not one"
            }
            4 => {
                let unmounted = host.inlay.state().join("fs/open-less");
                unmount(unmounted, UnmountFlags::DETACH).unwrap();
                "the open-less connection has ended"
            }
            5 => {
                let mounted = host.inlay.state().join("fs/no-xattrs");
                unmount(mounted, UnmountFlags::DETACH).unwrap();
                "the no-xattrs connection is no longer mounted on"
            }
            6 => {
                let place = place("inlay-ledger", kept);
                kept[place] = stored("inlay-ledger", File::open("/dev/zero").unwrap());
                "the ledger is not one of this version"
            }
            _ => unreachable!(),
        }
    })
}

#[test]
fn an_unusable_session_is_logged_and_a_new_one_begins() {
    for how in 0..7 {
        let host = Host::new();
        let service = host.start();
        let session = host.session();
        let mounted = host.inlay.mount("base", &[]).unwrap();
        let path = host.file(mounted.path(), 10).1;
        let open = File::open(&path).unwrap();
        host.end_both(Signal::KILL);
        drop(service);
        let said = spoil(&host, how);
        let service = host.start();
        let log = host.inlay.daemon_log();
        assert!(log.contains(said), "{said} is not in {log}");
        assert!(log.contains("a new session begins"), "{log}");
        assert_ne!(host.session(), session);
        // Nobody waits in vain, and nothing that is dead stays.
        let error = (&open).read(&mut [0; 4096]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()), "{said}");
        assert!(!path.exists(), "{said}");
        drop(open);
        assert_eq!(host.manager.names(), NAMES, "only the new session is kept");
        let again = host.inlay.mount("base", &[]).unwrap();
        host.assert_same(again.path());
        again.unmount().unwrap();
        drop(mounted);
        host.stop(service);
    }
}

#[test]
fn descriptors_of_others_are_left_alone() {
    let host = Host::new();
    let service = host.start();
    let session = host.session();
    let mounted = host.inlay.mount("base", &[]).unwrap();
    host.end_both(Signal::KILL);
    drop(service);
    let others = |kept: &mut Vec<Stored>| {
        kept.insert(0, stored("http", File::open("/dev/null").unwrap()));
        kept.push(stored("inlay-of-another-version", File::open("/dev/null").unwrap()));
    };
    host.manager.with_stored(others);
    let service = host.start();
    assert_eq!(host.session(), session);
    host.assert_same(mounted.path());
    mounted.unmount().unwrap();
    let (_, keeper) = host.inlay.daemon_pids().unwrap();
    for pid in [service.pid(), keeper] {
        let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
        let targets = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let ledgers =
            targets.filter(|target| target.to_string_lossy().contains("inlay-ledger")).count();
        assert_eq!(ledgers, 1, "of process {pid:?}");
    }
    host.inlay.succeed(["daemon", "stop"]).unwrap();
    drop(service);
    assert_eq!(host.manager.names(), ["http", "inlay-of-another-version"]);
    host.inlay.wait_until_quiet().unwrap();
}

#[test]
fn commands_do_not_put_a_new_session_in_the_place_of_one_that_is_kept() {
    let host = Host::new();
    let service = host.start();
    let session = host.session();
    let mounted = host.inlay.mount("base", &["--rw"]).unwrap();
    fs::write(mounted.path().join("new"), "new").unwrap();
    host.end_both(Signal::KILL);
    drop(service);
    let other = scratch().unwrap();
    for words in [
        ["mount".as_ref(), "base".as_ref(), other.path().as_os_str()].as_slice(),
        &["umount".as_ref(), mounted.path().as_os_str()],
        &["daemon".as_ref(), "stop".as_ref()],
        &["daemon".as_ref(), "--takeover".as_ref()],
    ] {
        let ran = host.inlay.fail(words).unwrap();
        assert!(ran.stderr.contains("start the service"), "{ran:?}");
    }
    let service = host.start();
    assert_eq!(host.session(), session);
    assert_eq!(fs::read(mounted.path().join("new")).unwrap(), b"new");
    host.assert_same(mounted.path());
    mounted.unmount().unwrap();
    host.stop(service);
}

#[test]
fn a_session_that_is_kept_can_be_given_up() {
    let host = Host::new();
    let service = host.start();
    let session = host.session();
    let mounted = host.inlay.mount("base", &[]).unwrap();
    host.end_both(Signal::KILL);
    drop(service);
    let mut waiting = Command::new("ls").arg(mounted.path().join("absent")).spawn().unwrap();
    let ran = host.inlay.succeed(["daemon", "stop", "--force"]).unwrap();
    assert!(ran.text().contains("stopped"), "{ran:?}");
    assert!(!waiting.wait().unwrap().success());
    assert!(fs::read_dir(mounted.path()).unwrap().next().is_none(), "it is unmounted");
    host.inlay.wait_until_quiet().unwrap();
    // What is kept of it is let go with the next start.
    let service = host.start();
    assert_ne!(host.session(), session);
    assert_eq!(host.manager.names(), NAMES);
    drop(mounted);
    host.stop(service);
}

#[test]
fn a_service_that_ends_with_nothing_mounted_leaves_nothing() {
    let host = Host::new();
    let mut service = host.start();
    let mounted = host.inlay.mount("base", &[]).unwrap();
    mounted.unmount().unwrap();
    end(service.pid(), Signal::TERM);
    assert!(service.wait().unwrap().success());
    assert!(host.manager.names().is_empty());
    host.inlay.wait_until_quiet().unwrap();
}

/// A runtime that inherited the manager's socket would wait for its container to say that it is ready.
#[test]
fn a_sandbox_of_a_service_starts() {
    let host = Boxes::new(local());
    let manager = Manager::new().unwrap();
    let mut command = host.inlay.command();
    command.args(unit_words()).arg("--state").arg(host.inlay.state());
    let mut service = manager.start(&command).unwrap();
    service.wait_until_ready().unwrap();
    host.create("a", &[]);
    assert_eq!(host.sh("a", "echo \"${NOTIFY_SOCKET-none}\""), "none\n");
    host.succeed(&["sandbox", "rm", "--force", "a"]);
    host.succeed(&["daemon", "stop"]);
    service.wait().unwrap();
}
