//! This test program as a keeper, and as a server that can be killed: it starts itself again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use inlay_fusefs::keeper::{Claim, Keeper, KeeperOptions, Kept};
use inlay_fusefs::{
    ConnectionKind, ContentSource, HostServer, Restored, ServeOptions, Slot, SnapshotFs,
};
use inlay_store::format::Index;

use super::{AtHand, Delayed, Place, Snapshot};

/// The source of a snapshot none of whose bytes ever come.
static HELD: LazyLock<Arc<Delayed>> = LazyLock::new(Arc::default);

/// How long anything here may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

const ROLE: &str = "INLAY_TEST_ROLE";
const STATE: &str = "INLAY_TEST_STATE";

/// A child process that is ended with the test.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Starts this program again as `role`.
    pub(crate) fn start(role: &str, state: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "play_a_role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(STATE, state)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        Self(command.spawn().unwrap())
    }

    /// Kills it, and waits until it has ended.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it ends by itself.
    pub(crate) fn until_ended(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "a process does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A keeper below a directory of its own. It is stopped when the test ends, whatever its outcome.
pub(crate) struct Session {
    pub(crate) place: Place,
    keeper: Process,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With settings for the keeper in `settings`.
    pub(crate) fn with(settings: impl FnOnce(&mut Settings)) -> Self {
        assert!(
            Path::new("/dev/fuse").exists(),
            "these tests mount: they need root and /dev/fuse, which is missing"
        );
        let place = Place::new();
        let mut made = Settings::default();
        settings(&mut made);
        made.write(&place.state());
        let keeper = Process::start("keeper", &place.state());
        let session = Self { place, keeper };
        drop(session.keeper());
        session
    }

    /// A new connection to the keeper.
    pub(crate) fn keeper(&self) -> Keeper {
        Keeper::connect_within(&socket(&self.place.state()), PATIENCE).unwrap()
    }

    /// The keeper's process.
    pub(crate) fn keeper_process(&mut self) -> &mut Process {
        &mut self.keeper
    }

    /// Serves it in this process, which must do so once only.
    pub(crate) fn serve_here(&self) -> HostServer {
        let kept = self.keeper().claim(Claim::WhenFree).unwrap();
        HostServer::start(kept, Vec::new(), &ServeOptions::default()).unwrap()
    }

    /// Serves it in a process of its own, which attaches the snapshots that were put there.
    pub(crate) fn serve(&self) -> Process {
        Process::start("server", &self.place.state())
    }

    /// As [`Session::serve`], while another still serves. Returns when it waits for its turn.
    pub(crate) fn serve_standing_by(&self) -> Process {
        let waiting = self.keeper().status().unwrap().waiting;
        let process = self.serve();
        let start = Instant::now();
        while self.keeper().status().unwrap().waiting <= waiting {
            assert!(start.elapsed() < PATIENCE, "a server does not stand by");
            std::thread::sleep(Duration::from_millis(1));
        }
        process
    }

    /// Makes a snapshot of the tree for servers, the next in the order of their slots.
    pub(crate) fn put(&self, number: u32, snapshot: &Snapshot, passthrough: bool) {
        let dir = self.place.state().join(format!("snapshot-{number}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("index"), snapshot.index.bytes()).unwrap();
        fs::write(dir.join("tree"), self.place.tree().to_str().unwrap()).unwrap();
        if passthrough {
            fs::write(dir.join("passthrough"), "").unwrap();
        }
    }

    /// Has the server do something, and waits until it is done.
    pub(crate) fn tell(&self, what: &str) {
        let (partial, order) = (self.place.state().join("partial-order"), self.order());
        fs::write(&partial, what).unwrap();
        fs::rename(partial, &order).unwrap();
        let start = Instant::now();
        while order.exists() {
            assert!(start.elapsed() < PATIENCE, "the server does not {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn order(&self) -> PathBuf {
        self.place.state().join("order")
    }

    /// Where the slot `number` is, once it is served.
    pub(crate) fn slot_dir(&self, number: u32) -> PathBuf {
        let start = Instant::now();
        loop {
            let noted = self.place.state().join(format!("slot-{number}"));
            if let Ok(dir) = fs::read_to_string(noted) {
                return dir.into();
            }
            assert!(start.elapsed() < PATIENCE, "slot {number} does not appear");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Ok(keeper) = Keeper::connect(&socket(&self.place.state())) {
            let _ = keeper.stop();
        }
        let _ = self.keeper.0.kill();
        let _ = self.keeper.0.wait();
        // A keeper that was killed leaves its mounts.
        for kind in ConnectionKind::ALL {
            let at = self.place.state().join("fs").join(kind.name());
            let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A snapshot in a slot that this process serves.
pub(crate) struct Mounted {
    pub(crate) server: HostServer,
    /// Where its files are.
    pub(crate) dir: PathBuf,
    slot: Slot,
    session: Session,
}

impl Mounted {
    pub(crate) fn new(fs: SnapshotFs) -> Self {
        let session = Session::new();
        let server = session.serve_here();
        let slot = server.attach(fs).unwrap();
        let dir = server.dir(slot).unwrap();
        Self { server, dir, slot, session }
    }

    /// The connection that it lives on.
    pub(crate) fn kind(&self) -> ConnectionKind {
        self.server.kind(self.slot).unwrap()
    }

    /// Shows it at `at`, too, for as long as what is returned lives.
    pub(crate) fn bind(&self, at: &Path) -> Bound {
        let mut mount = Command::new("mount");
        assert!(mount.arg("--bind").args([&self.dir, at]).status().unwrap().success());
        Bound(at.to_owned())
    }

    /// Ends it.
    pub(crate) fn unmount(self) {
        self.server.unmount().unwrap();
        drop(self.session);
    }
}

/// A bind mount.
#[derive(Debug)]
pub(crate) struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// What a keeper of the tests is told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) grace: Duration,
    pub(crate) respawn: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { deadline: PATIENCE, grace: Duration::from_secs(5), respawn: false }
    }
}

impl Settings {
    fn write(&self, state: &Path) {
        let text = format!(
            "{} {} {}",
            self.deadline.as_millis(),
            self.grace.as_millis(),
            u8::from(self.respawn)
        );
        fs::write(state.join("settings"), text).unwrap();
    }

    fn read(state: &Path) -> Self {
        let text = fs::read_to_string(state.join("settings")).unwrap();
        let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
        Self {
            deadline: Duration::from_millis(numbers[0]),
            grace: Duration::from_millis(numbers[1]),
            respawn: numbers[2] == 1,
        }
    }
}

fn socket(state: &Path) -> PathBuf {
    KeeperOptions::below(state).socket
}

/// What this program does if it was started for a role; nothing as a test.
pub(crate) fn play() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let state = PathBuf::from(std::env::var(STATE).unwrap());
    match role.as_str() {
        "keeper" => {
            let settings = Settings::read(&state);
            let mut options = KeeperOptions::below(&state);
            options.deadline = settings.deadline;
            options.grace = settings.grace;
            options.respawn = settings.respawn.then(|| {
                let own = std::env::current_exe().unwrap();
                let words = ["--exact", "play_a_role", "--nocapture", "--test-threads=1"];
                let server = ["env", "INLAY_TEST_ROLE=server"].map(Into::into).into_iter();
                server.chain([own.into()]).chain(words.map(Into::into)).collect()
            });
            inlay_fusefs::keeper::run(options).unwrap();
        }
        "server" => serve(&state, Claim::WhenFree),
        "successor" => serve(&state, Claim::TakeOver),
        other => panic!("no such role: {other}"),
    }
}

fn serve(state: &Path, how: Claim) {
    let kept = Keeper::connect_within(&socket(state), PATIENCE).unwrap().claim(how).unwrap();
    let known = restored(state, &kept);
    let first = known.is_empty();
    let mut server = HostServer::start(kept, known, &ServeOptions::default()).unwrap();
    if first {
        for number in 1.. {
            if !state.join(format!("snapshot-{number}")).exists() {
                break;
            }
            let slot = server.attach(open(state, number)).unwrap();
            assert_eq!(slot.get(), number);
            let partial = state.join("partial");
            fs::write(&partial, server.dir(slot).unwrap().to_str().unwrap()).unwrap();
            fs::rename(&partial, state.join(format!("slot-{number}"))).unwrap();
        }
    }
    let pause = Duration::from_millis(2);
    while !server.ended().within(Duration::ZERO) {
        if server.asked_to_leave().within(pause) {
            server.leave();
            break;
        }
        let order = state.join("order");
        if let Ok(what) = fs::read_to_string(&order) {
            if what == "leave" {
                server.leave();
                fs::remove_file(order).unwrap();
                // What waits for its bytes fails, as when a runtime is taken down, and what the kernel
                // then asks for a second time, too.
                for _ in 0..50 {
                    HELD.forget();
                    std::thread::sleep(pause);
                }
                break;
            }
            match what.split_once(' ') {
                Some(("detach", slot)) => {
                    server.detach(Slot::new(slot.parse().unwrap()).unwrap()).unwrap();
                }
                _ => drop(server.sweep()),
            }
            fs::remove_file(order).unwrap();
        }
    }
    std::process::exit(0);
}

fn restored(state: &Path, kept: &Kept) -> Vec<Restored> {
    let slots = kept.slots().into_iter().map(|kept| kept.slot);
    slots.map(|slot| restore(state.to_owned(), slot)).collect()
}

fn restore(state: PathBuf, slot: Slot) -> Restored {
    Restored { slot, opener: Box::new(move || Ok(open(&state, slot.get()))) }
}

fn open(state: &Path, number: u32) -> SnapshotFs {
    let dir = state.join(format!("snapshot-{number}"));
    let index = Index::open(&dir.join("index")).unwrap();
    let tree = PathBuf::from(fs::read_to_string(dir.join("tree")).unwrap());
    let files = super::files_of(&index, &tree);
    if dir.join("held").exists() {
        return SnapshotFs::new(index, Arc::clone(&HELD) as Arc<dyn ContentSource>);
    }
    let source: Arc<dyn ContentSource> = if dir.join("passthrough").exists() {
        Arc::new(super::Whole::new(files, &index))
    } else {
        Arc::new(AtHand(files))
    };
    SnapshotFs::new(index, source)
}

/// The files behind a snapshot's inodes.
pub(crate) fn inodes(root: &Path) -> BTreeMap<PathBuf, u64> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if stat.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path.strip_prefix(root).unwrap().to_owned(), stat.ino());
    }
    found
}
