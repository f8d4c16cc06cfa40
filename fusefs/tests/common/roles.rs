//! Runs this test program as a keeper, and as a server that can be killed, by re-executing it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use inlay_fusefs::keeper::{Claim, Keeper, KeeperOptions, Kept};
use inlay_fusefs::{
    ConnectionKind, ContentSource, FuseFeature, HostServer, Restored, ServeOptions, Slot,
    SnapshotFs,
};
use inlay_store::format::Index;

use super::{AtHand, Delayed, Place, Snapshot};

/// Source of a snapshot that never returns bytes.
static HELD: LazyLock<Arc<Delayed>> = LazyLock::new(Arc::default);

/// Timeout of every wait in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

const ROLE: &str = "INLAY_TEST_ROLE";
const STATE: &str = "INLAY_TEST_STATE";

/// A child process, killed on drop.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Re-executes this program as `role`.
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

    /// Kills it and waits for its exit.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its exit.
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

/// A keeper with its own directory. Stopped at the end of the test, even if it fails.
pub(crate) struct Session {
    pub(crate) place: Place,
    keeper: Process,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Starts a keeper with changed `settings`.
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

    /// Opens a new connection to the keeper.
    pub(crate) fn keeper(&self) -> Keeper {
        Keeper::connect_within(&socket(&self.place.state()), PATIENCE).unwrap()
    }

    /// Returns the keeper's process.
    pub(crate) fn keeper_process(&mut self) -> &mut Process {
        &mut self.keeper
    }

    /// Serves it in this process; at most once per process.
    pub(crate) fn serve_here(&self) -> HostServer {
        let kept = self.keeper().claim(Claim::WhenFree).unwrap();
        HostServer::start(kept, Vec::new(), &ServeOptions::default()).unwrap()
    }

    /// Serves it in a child process, which attaches the snapshots put there.
    pub(crate) fn serve(&self) -> Process {
        Process::start("server", &self.place.state())
    }

    /// Like [`Session::serve`], while another server still runs. Returns when the new one waits for
    /// the session.
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

    /// Stores a snapshot for servers; numbers must be in slot order.
    pub(crate) fn put(&self, number: u32, snapshot: &Snapshot, passthrough: bool) {
        let dir = self.place.state().join(format!("snapshot-{number}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("index"), snapshot.index.bytes()).unwrap();
        fs::write(dir.join("tree"), self.place.tree().to_str().unwrap()).unwrap();
        if passthrough {
            fs::write(dir.join("passthrough"), "").unwrap();
        }
    }

    /// Sends a command to the server and waits until it is done.
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

    /// Returns the directory of the slot `number`, once it is served.
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
        // A killed keeper leaves its mounts.
        for kind in ConnectionKind::ALL {
            let at = self.place.state().join("fs").join(kind.name());
            let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A snapshot in a slot that this process serves.
pub(crate) struct Mounted {
    pub(crate) server: HostServer,
    /// Its root directory.
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

    /// Returns its connection.
    pub(crate) fn kind(&self) -> ConnectionKind {
        self.server.kind(self.slot).unwrap()
    }

    /// Bind-mounts it at `at` until the returned guard is dropped.
    pub(crate) fn bind(&self, at: &Path) -> Bound {
        let mut mount = Command::new("mount");
        assert!(mount.arg("--bind").args([&self.dir, at]).status().unwrap().success());
        Bound(at.to_owned())
    }

    /// Ends the session.
    pub(crate) fn unmount(self) {
        self.server.unmount().unwrap();
        drop(self.session);
    }
}

/// A bind mount, unmounted on drop.
#[derive(Debug)]
pub(crate) struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Settings of a test keeper.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) grace: Duration,
    pub(crate) respawn: bool,
    /// Kernel features that servers do not use even if offered.
    pub(crate) without: Vec<FuseFeature>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: PATIENCE,
            grace: Duration::from_secs(5),
            respawn: false,
            without: Vec::new(),
        }
    }
}

impl Settings {
    fn write(&self, state: &Path) {
        let text = format!(
            "{} {} {} {}",
            self.deadline.as_millis(),
            self.grace.as_millis(),
            u8::from(self.respawn),
            u8::from(self.without.contains(&FuseFeature::Resend))
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
            without: if numbers[3] == 1 { vec![FuseFeature::Resend] } else { Vec::new() },
        }
    }
}

fn socket(state: &Path) -> PathBuf {
    KeeperOptions::below(state).socket
}

/// Plays the role that this program was started for; a no-op as a test.
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
    let without = Settings::read(state).without;
    let options = ServeOptions { without, ..ServeOptions::default() };
    let mut server = HostServer::start(kept, known, &options).unwrap();
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
                // Reads waiting for bytes fail, as when a runtime shuts down, and so do the
                // kernel's retries.
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
                // From a mount of its own, as when a daemon copies out of a sandbox.
                Some(("read", path)) => {
                    let path = path.to_owned();
                    std::thread::spawn(move || fs::read(path));
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
    // Simulates a store that does not respond.
    while state.join(format!("unreachable-{number}")).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
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

/// Returns the inode numbers of the files below `root`.
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
