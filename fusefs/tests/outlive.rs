//! Servers killed under load: no program notices. Requires root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::Snapshot;
use common::roles::{self, PATIENCE, Process, Session};
use inlay_fusefs::FuseFeature;
use inlay_testkit::content;
use rustix::mount::{UnmountFlags, unmount};

#[test]
fn play_a_role() {
    roles::play();
}

const LARGE: usize = 3;
const SMALL: usize = 600;

/// Creates a tree with large and small files, links, and a program.
fn tree(at: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for number in 0..LARGE {
        files.insert(format!("large-{number}"), content::random(&format!("l{number}"), 5 << 20));
    }
    for number in 0..SMALL {
        let (dir, len) = (number % 20, 200 + number * 31);
        files.insert(format!("d{dir}/small-{number}"), content::random(&format!("s{number}"), len));
    }
    for (name, bytes) in &files {
        let path = at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        symlink(format!("/target/of/{name}"), path.with_extension("link")).unwrap();
    }
    fs::copy("/usr/bin/true", at.join("program")).unwrap();
    fs::set_permissions(at.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at.join("program"), "user.some", b"value", flags).unwrap();
    files
}

/// An overlay above a slot, unmounted on drop.
struct Overlay {
    at: PathBuf,
}

impl Overlay {
    fn new(session: &Session, lower: &Path) -> Self {
        let at = session.place.mnt();
        let (upper, work) = (session.place.dir("upper"), session.place.dir("work"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=on",
            lower.display(),
            upper.display(),
            work.display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o"]).arg(options).arg(&at);
        assert!(mount.status().unwrap().success());
        Self { at }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// Programs that use a directory until stopped, with the errors they met.
struct Load {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    wrong: Arc<Mutex<Vec<String>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

type Files = Arc<BTreeMap<String, Vec<u8>>>;

impl Load {
    fn on(dirs: &[PathBuf], files: &Files) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            steps: Arc::default(),
            wrong: Arc::default(),
            threads: Vec::new(),
        };
        for (number, dir) in dirs.iter().enumerate() {
            load.start(dir, files, move |dir, files, turn| read_one(dir, files, turn, number));
            load.start(dir, files, walk);
            load.start(dir, files, absent);
            load.start(dir, files, run_program);
            load.start(dir, files, map_one);
        }
        load
    }

    fn start(
        &mut self,
        dir: &Path,
        files: &Files,
        step: impl Fn(&Path, &Files, usize) -> Result<(), String> + Send + 'static,
    ) {
        let (dir, files) = (dir.to_owned(), Arc::clone(files));
        let (stop, steps) = (Arc::clone(&self.stop), Arc::clone(&self.steps));
        let wrong = Arc::clone(&self.wrong);
        self.threads.push(thread::spawn(move || {
            for turn in 0.. {
                if stop.load(Relaxed) {
                    return;
                }
                if let Err(why) = step(&dir, &files, turn) {
                    wrong.lock().unwrap().push(format!("{}: {why}", dir.display()));
                }
                steps.fetch_add(1, Relaxed);
            }
        }));
    }

    /// Blocks until `count` more steps are done.
    fn until_more(&self, count: u64) {
        let (target, start) = (self.steps.load(Relaxed) + count, Instant::now());
        while self.steps.load(Relaxed) < target {
            assert!(start.elapsed() < PATIENCE, "programs hang: {:?}", self.wrong.lock().unwrap());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let wrong = std::mem::take(&mut *self.wrong.lock().unwrap());
        assert!(wrong.is_empty(), "{} went wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(9)]);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn told<T>(what: &str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn nth(files: &Files, turn: usize) -> (&String, &Vec<u8>) {
    files.iter().nth((turn * 7919) % files.len()).unwrap()
}

fn read_one(dir: &Path, files: &Files, turn: usize, reader: usize) -> Result<(), String> {
    let (name, bytes) = nth(files, turn + reader * 101);
    let path = dir.join(name);
    let mut file = told(name, File::open(&path))?;
    if turn.is_multiple_of(2) {
        // Drop the pages, so that they are read again.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
    let mut read = Vec::new();
    told(name, file.read_to_end(&mut read))?;
    if read != *bytes {
        return Err(format!("{name}: other bytes"));
    }
    let link = told(name, fs::read_link(path.with_extension("link")))?;
    if link != Path::new(&format!("/target/of/{name}")) {
        return Err(format!("{name}: another link"));
    }
    Ok(())
}

fn walk(dir: &Path, files: &Files, turn: usize) -> Result<(), String> {
    let at = dir.join(format!("d{}", turn % 20));
    let entries = told("list", fs::read_dir(&at))?;
    let mut count = 0;
    for entry in entries {
        let entry = told("list", entry)?;
        let stat = told("stat", entry.metadata())?;
        let name = format!("d{}/{}", turn % 20, entry.file_name().to_str().unwrap());
        if stat.is_file() && files.get(&name).map(|b| b.len() as u64) != Some(stat.len()) {
            return Err(format!("{name}: another size"));
        }
        count += 1;
    }
    if count == 2 * SMALL / 20 { Ok(()) } else { Err(format!("{count} names")) }
}

fn absent(dir: &Path, _: &Files, turn: usize) -> Result<(), String> {
    // A unique name each time, so that each lookup is a request.
    let error = fs::symlink_metadata(dir.join(format!("absent-{turn}"))).unwrap_err();
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(format!("absent: {error}")),
    }
}

fn run_program(dir: &Path, _: &Files, _: usize) -> Result<(), String> {
    let status = told("run", Command::new(dir.join("program")).status())?;
    if status.success() { Ok(()) } else { Err(format!("run: {status}")) }
}

fn map_one(dir: &Path, files: &Files, turn: usize) -> Result<(), String> {
    // python3 maps the file; the crate denies unsafe code, tests too.
    let program = "import mmap,sys\n\
                   f=open(sys.argv[1],'rb')\n\
                   m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n\
                   f.close()\n\
                   sys.stdout.buffer.write(m[:])";
    let (name, bytes) = files.iter().nth(turn % files.len()).unwrap();
    let out = Command::new("python3").args(["-c", program]).arg(dir.join(name)).output();
    let out = told("map", out)?;
    if out.stdout == *bytes {
        Ok(())
    } else {
        Err(format!("map {name}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

/// How a kernel handles requests that a killed server has read.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    SendsAgain,
    /// Linux before 6.9.
    SendsNothingAgain,
}

impl Kernel {
    fn session(self) -> Session {
        Session::with(|settings| settings.without = self.without())
    }

    fn without(self) -> Vec<FuseFeature> {
        match self {
            Self::SendsAgain => Vec::new(),
            Self::SendsNothingAgain => vec![FuseFeature::Resend],
        }
    }
}

/// Kills the server `kills` times under load. Returns the times without answers: with a standby
/// server, and with one started only afterwards.
fn kill_again_and_again(kills: usize, passthrough: bool, kernel: Kernel) -> [Vec<Duration>; 2] {
    let session = kernel.session();
    let files = Arc::new(tree(&session.place.tree()));
    session.put(1, &Snapshot::of(&session.place.tree()), passthrough);
    let mut server = session.serve();
    let dir = session.slot_dir(1);
    let inodes = roles::inodes(&dir);
    let overlay = Overlay::new(&session, &dir);
    let load = Load::on(&[dir.clone(), overlay.at.clone()], &files);
    let mut gaps = [Vec::new(), Vec::new()];
    for number in 0..kills {
        load.until_more(40);
        // Every other time, the next server already stands by.
        let next = number.is_multiple_of(2).then(|| session.serve_standing_by());
        let killed = Instant::now();
        server.kill();
        server = next.unwrap_or_else(|| session.serve());
        fs::symlink_metadata(dir.join(format!("probe-{number}"))).unwrap_err();
        gaps[number % 2].push(killed.elapsed());
    }
    load.until_more(40);
    load.end();
    assert_eq!(roles::inodes(&dir), inodes);
    let status = session.keeper().status().unwrap();
    assert_eq!(status.deaths, kills as u64);
    drop(overlay);
    gaps
}

#[test]
fn programs_do_not_notice_that_servers_are_killed() {
    kill_again_and_again(10, false, Kernel::SendsAgain);
}

#[test]
fn programs_do_not_notice_it_when_files_are_passed_through() {
    kill_again_and_again(10, true, Kernel::SendsAgain);
}

/// As on Linux before 6.9.
#[test]
fn programs_do_not_notice_it_where_the_kernel_sends_nothing_again() {
    kill_again_and_again(10, false, Kernel::SendsNothingAgain);
}

#[test]
#[ignore = "takes minutes: run it by its name, with --ignored --nocapture"]
fn a_hundred_servers_are_killed() {
    for (passthrough, kernel) in [
        (false, Kernel::SendsAgain),
        (true, Kernel::SendsAgain),
        (false, Kernel::SendsNothingAgain),
    ] {
        let [standing_by, started_then] = kill_again_and_again(100, passthrough, kernel);
        for (what, mut gaps) in [("standing by", standing_by), ("started then", started_then)] {
            gaps.sort_unstable();
            let at = |percent: usize| gaps[(gaps.len() * percent / 100).min(gaps.len() - 1)];
            println!(
                "{kernel:?}, passthrough {passthrough}, next server {what}: {} kills, \
                 gap p50 {:?}, p99 {:?}",
                gaps.len(),
                at(50),
                at(99)
            );
        }
    }
}

/// Serves a snapshot of [`tree`] in slot 1, with passthrough of its large files.
fn served() -> (Session, Files, Process, PathBuf) {
    let session = Session::new();
    let files = Arc::new(tree(&session.place.tree()));
    session.put(1, &Snapshot::of(&session.place.tree()), true);
    let server = session.serve();
    let dir = session.slot_dir(1);
    (session, files, server, dir)
}

#[test]
fn passthrough_files_are_readable_while_no_server_runs() {
    let (session, files, server, dir) = served();
    let name = "large-0";
    let file = File::open(dir.join(name)).unwrap();
    server.kill();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut bytes = vec![0; files[name].len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == files[name]);
    // The next server knows that it is open, and in which mode: another open must use the same
    // mode.
    let _next = session.serve();
    let again = File::open(dir.join(name)).unwrap();
    drop(file);
    let third = File::open(dir.join(name)).unwrap();
    for file in [again, third] {
        let mut bytes = vec![0; files[name].len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == files[name]);
    }
}

#[test]
fn a_file_that_was_open_before_it_was_whole_stays_plain_until_it_is_closed() {
    let session = Session::new();
    let files = tree(&session.place.tree());
    session.put(1, &Snapshot::of(&session.place.tree()), false);
    let server = session.serve();
    let path = session.slot_dir(1).join("large-0");
    let read = |file: &File| {
        let mut bytes = vec![0; files["large-0"].len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == files["large-0"]);
    };
    let first = File::open(&path).unwrap();
    read(&first);
    server.kill();
    // The next server has the whole file, but the kernel would refuse passthrough now.
    fs::write(session.place.state().join("snapshot-1/passthrough"), "").unwrap();
    let _next = session.serve();
    let second = File::open(&path).unwrap();
    read(&second);
    drop((first, second));
    read(&File::open(&path).unwrap());
}

#[test]
fn requests_fail_when_no_server_comes_back_in_time_and_work_again_when_one_does() {
    for kernel in [Kernel::SendsAgain, Kernel::SendsNothingAgain] {
        no_server_comes_back_in_time(kernel);
    }
}

fn no_server_comes_back_in_time(kernel: Kernel) {
    let session = Session::with(|settings| {
        settings.deadline = Duration::from_millis(200);
        settings.without = kernel.without();
    });
    let files = Arc::new(tree(&session.place.tree()));
    session.put(1, &Snapshot::of(&session.place.tree()), true);
    let server = session.serve();
    let dir = session.slot_dir(1);
    let large = File::open(dir.join("large-1")).unwrap();
    server.kill();
    let error = File::open(dir.join("d3/small-3")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(session.keeper().status().unwrap().refusing);
    // A file closed now must not count as open for the next server.
    drop(large);
    let server = session.serve();
    let mut read = Vec::new();
    let start = Instant::now();
    while read.is_empty() {
        // The new server may not have the session yet.
        if let Ok(bytes) = fs::read(dir.join("d3/small-3")) {
            read = bytes;
        }
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(read == files["d3/small-3"]);
    assert!(fs::read(dir.join("large-1")).unwrap() == files["large-1"]);
    assert!(!session.keeper().status().unwrap().refusing);
    drop(server);
}

#[test]
fn a_keeper_can_start_the_next_server_itself() {
    let session = Session::with(|settings| settings.respawn = true);
    let files = Arc::new(tree(&session.place.tree()));
    session.put(1, &Snapshot::of(&session.place.tree()), false);
    let server = session.serve();
    let dir = session.slot_dir(1);
    let first = server.0.id();
    for _ in 0..3 {
        let pid = session.keeper().status().unwrap().server.unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let name = "d4/small-4";
        let file = File::open(dir.join(name)).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = vec![0; files[name].len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == files[name]);
    }
    let status = session.keeper().status().unwrap();
    assert_eq!(status.deaths, 3);
    assert_ne!(status.server, Some(first));
}

#[test]
fn a_server_outlives_its_keeper() {
    let (mut session, files, _server, dir) = served();
    session.keeper_process().0.kill().unwrap();
    session.keeper_process().until_ended();
    assert!(fs::read(dir.join("large-2")).unwrap() == files["large-2"]);
    assert!(fs::read(dir.join("d7/small-7")).unwrap() == files["d7/small-7"]);
}

#[test]
fn a_keeper_without_mounts_ends() {
    let (mut session, _, mut server, dir) = served();
    for kind in inlay_fusefs::ConnectionKind::ALL {
        let at = dir.parent().unwrap().with_file_name(kind.name());
        unmount(&at, UnmountFlags::DETACH).unwrap();
    }
    assert!(server.until_ended().success());
    assert!(session.keeper_process().until_ended().success());
}

#[test]
fn programs_that_a_keeper_starts_get_none_of_its_descriptors() {
    let session = Session::with(|settings| settings.respawn = true);
    session.put(1, &Snapshot::of(&session.place.tree()), false);
    let server = session.serve();
    session.slot_dir(1);
    let first = server.0.id();
    server.kill();
    fs::symlink_metadata(session.slot_dir(1).join("absent")).unwrap_err();
    let pid = session.keeper().status().unwrap().server.unwrap();
    assert_ne!(pid, first);
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets: Vec<_> =
        open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect();
    let devices = targets.iter().filter(|target| *target == Path::new("/dev/fuse")).count();
    let ledgers = targets.iter().filter(|target| target.to_str().unwrap().contains("inlay-ledger"));
    assert_eq!(ledgers.count(), 1);
    // One per connection and one for its fuser session, and no others.
    assert_eq!(devices, 2 * inlay_fusefs::ConnectionKind::ALL.len());
}

#[test]
fn reads_that_fail_in_a_server_that_leaves_are_answered_by_the_next() {
    for kernel in [Kernel::SendsAgain, Kernel::SendsNothingAgain] {
        reads_fail_in_a_server_that_leaves(kernel);
    }
}

fn reads_fail_in_a_server_that_leaves(kernel: Kernel) {
    let session = kernel.session();
    let files = tree(&session.place.tree());
    session.put(1, &Snapshot::of(&session.place.tree()), false);
    let held = session.place.state().join("snapshot-1/held");
    fs::write(&held, "").unwrap();
    let mut server = session.serve();
    let dir = session.slot_dir(1);
    let readers: Vec<_> = ["large-0", "large-1", "d5/small-5"]
        .map(|name| {
            let path = dir.join(name);
            (name, thread::spawn(move || fs::read(path)))
        })
        .into();
    // They wait in the server: a later request has been answered.
    thread::sleep(Duration::from_millis(50));
    fs::symlink_metadata(dir.join("absent")).unwrap_err();
    fs::remove_file(held).unwrap();
    session.tell("leave");
    assert!(server.until_ended().success());
    let _next = session.serve();
    for (name, reader) in readers {
        assert!(reader.join().unwrap().unwrap() == files[name]);
    }
    assert_eq!(session.keeper().status().unwrap().deaths, 0);
}

/// A killed server cannot exit while a thread of it waits for a reply that it would have sent itself,
/// or for another process's lookup of the same name.
#[test]
fn a_killed_server_that_waits_for_itself_does_not_hold_up_the_next_one() {
    for kernel in [Kernel::SendsAgain, Kernel::SendsNothingAgain] {
        for others in ["absent-1", "absent-2"] {
            a_killed_server_waits_for_itself(kernel, others);
        }
    }
}

/// Whether a thread of the process waits in one of the functions `places` of the kernel.
fn waits_in(process: u32, places: &[&str]) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads.flatten().any(|thread| {
        fs::read_to_string(thread.path().join("wchan"))
            .is_ok_and(|wchan| places.iter().any(|place| wchan.starts_with(place)))
    })
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn a_killed_server_waits_for_itself(kernel: Kernel, others: &str) {
    let session = kernel.session();
    fs::write(session.place.tree().join("file"), "x").unwrap();
    session.put(1, &Snapshot::of(&session.place.tree()), false);
    let first = session.serve();
    let dir = session.slot_dir(1);
    first.kill();
    let unreachable = session.place.state().join("unreachable-1");
    fs::write(&unreachable, "").unwrap();
    let mut second = session.serve();
    let mut other =
        Command::new("stat").arg(dir.join(others)).stderr(Stdio::null()).spawn().unwrap();
    eventually("another process looks up", || waits_in(other.id(), &["request_wait_answer"]));
    session.tell(&format!("read {}", dir.join("absent-1").display()));
    eventually("the server looks up", || {
        waits_in(second.0.id(), &["request_wait_answer", "d_alloc_parallel"])
    });
    second.0.kill().unwrap();
    fs::remove_file(unreachable).unwrap();
    let third = session.serve();
    // Otherwise nothing could end it.
    let cut = || inlay_fusefs::keeper::give_up(&session.place.state().join("fs"));
    let killed = Instant::now();
    while second.0.try_wait().unwrap().is_none() {
        if killed.elapsed() > Duration::from_secs(20) {
            cut();
            panic!("a killed server does not exit");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let answered = Instant::now();
    while other.try_wait().unwrap().is_none() {
        if answered.elapsed() > PATIENCE {
            cut();
            panic!("a lookup from before the kill is not answered");
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(other.wait().unwrap().code(), Some(1), "not found");
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"x");
    assert_eq!(session.keeper().status().unwrap().deaths, 2);
    // The lock of the third one is not the first byte's.
    third.kill();
    let _fourth = session.serve();
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"x");
}

/// The index of one snapshot cannot be opened, because the store does not respond. Only the readers
/// of that snapshot wait, however many they are.
#[test]
fn a_snapshot_that_can_not_be_opened_yet_holds_up_no_other() {
    for kernel in [Kernel::SendsAgain, Kernel::SendsNothingAgain] {
        one_snapshot_can_not_be_opened_yet(kernel);
    }
}

fn one_snapshot_can_not_be_opened_yet(kernel: Kernel) {
    const WAITING: usize = 40;
    let session = kernel.session();
    fs::write(session.place.tree().join("file"), "x").unwrap();
    let snapshot = Snapshot::of(&session.place.tree());
    session.put(1, &snapshot, false);
    session.put(2, &snapshot, false);
    let first = session.serve();
    let [stuck, other] = [1, 2].map(|slot| session.slot_dir(slot));
    first.kill();
    let unreachable = session.place.state().join("unreachable-1");
    fs::write(&unreachable, "").unwrap();
    let _second = session.serve();
    let (done, outcomes) = std::sync::mpsc::channel();
    // The kernel has not cached these names.
    let look_up = |dir: &Path, number: usize| {
        let (path, done) = (dir.join(format!("absent-{number}")), done.clone());
        thread::spawn(move || {
            let _ = done.send((number, fs::metadata(path).map(drop).map_err(|e| e.kind())));
        })
    };
    let absent = Err(std::io::ErrorKind::NotFound);
    let mut threads: Vec<_> = (0..WAITING).map(|number| look_up(&stuck, number)).collect();
    // Time for all of them to block; without it, the test covers less but fails no more often.
    thread::sleep(Duration::from_millis(200));
    threads.push(look_up(&other, WAITING));
    assert_eq!(outcomes.recv_timeout(PATIENCE).unwrap(), (WAITING, absent));
    assert!(outcomes.try_recv().is_err(), "a snapshot that is not open was looked into");
    fs::remove_file(&unreachable).unwrap();
    for _ in 0..WAITING {
        assert_eq!(outcomes.recv_timeout(PATIENCE).unwrap().1, absent);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(fs::read(stuck.join("file")).unwrap(), b"x");
}
