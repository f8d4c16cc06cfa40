//! The keeper's main loop: one thread that never blocks for long.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inlay_base::dying::is_dying;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::process::{Pid, Signal, pidfd_send_signal, setsid};

use super::device::{Connection, failed};
use super::error::KeeperError;
use super::refuse::Refuser;
use super::session::{Begin, Past, Session, check_no_live_session};
use super::signals::{Signalled, Signals};
use super::succession::{Action, Limits, PeerId, Turns};
use super::wire::{Ask, ConnectionNote, KeeperStatus, Tell, decode, encode};
use super::{Claim, socket};
use crate::kind::ConnectionKind;

/// Maximum number of clients; more are turned away.
const PEERS_MAX: usize = 64;
/// How often the keeper checks whether its server was killed and can't exit. One that is still there
/// at the next check has ended, as far as the session is concerned.
const CHECK_SERVER: Duration = Duration::from_secs(1);
/// Maximum number of respawned servers before the keeper gives up.
const RESPAWNS_MAX: u32 = 8;

/// Options of a keeper.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// An existing directory used by this keeper only; each connection is mounted below it.
    pub dir: PathBuf,
    /// Path of the keeper's socket.
    pub socket: PathBuf,
    /// How long programs wait for a server before they get errors.
    pub deadline: Duration,
    /// Time for a server to exit after a goodbye or a request to leave.
    pub grace: Duration,
    /// Command that starts a server, run when a server has died.
    pub respawn: Option<Vec<OsString>>,
    /// Base of the exponential backoff between failed respawns; the first pause is twice as long.
    pub respawn_pause: Duration,
    /// The connections to mount.
    pub kinds: Vec<ConnectionKind>,
    /// How to begin.
    pub begin: Begin,
}

impl KeeperOptions {
    /// Returns the default options, with a socket named `keeper.sock` in `state` and mounts below
    /// `state/fs`.
    pub fn below(state: &std::path::Path) -> Self {
        Self {
            dir: state.join("fs"),
            socket: state.join("keeper.sock"),
            deadline: Duration::from_mins(1),
            grace: Duration::from_secs(5),
            respawn: None,
            respawn_pause: Duration::from_millis(100),
            kinds: ConnectionKind::ALL.to_vec(),
            begin: Begin::Afresh,
        }
    }
}

/// Mounts the connections and holds them until stopped or until nothing is mounted any more. Takes
/// over the calling process: blocks its signals and leaves its terminal. Requires root.
pub fn run(options: KeeperOptions) -> Result<(), KeeperError> {
    let mut run = Run::start(options)?;
    while run.course == Course::On {
        run.turn()?;
    }
    run.end();
    Ok(())
}

#[derive(Debug)]
struct Peer {
    /// `None` once closed, while the process still matters.
    socket: Option<OwnedFd>,
    process: OwnedFd,
    pid: Pid,
}

/// State of the main loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    On,
    /// Exit and end the session.
    End,
    /// Exit; a descriptor store keeps the session.
    Leave,
}

struct Run {
    options: KeeperOptions,
    session: Session,
    /// A descriptor store also holds the session's descriptors.
    stored: bool,
    listener: OwnedFd,
    signals: Signals,
    /// Held for the keeper's lifetime: excludes a second keeper for the same directory.
    _lock: OwnedFd,
    peers: BTreeMap<PeerId, Peer>,
    next_peer: u64,
    turns: Turns,
    refuser: Option<Refuser>,
    child: Option<Child>,
    server_check: ServerCheck,
    course: Course,
}

/// When to look at the server next, and which one was dying at the last look.
#[derive(Clone, Copy, Debug)]
struct ServerCheck {
    at: Instant,
    dying: Option<PeerId>,
}

/// Origin of a polled descriptor.
#[derive(Clone, Copy, Debug)]
enum Watched {
    Signals,
    Listener,
    Socket(PeerId),
    Process(PeerId),
    Device,
}

impl Run {
    fn start(options: KeeperOptions) -> Result<Self, KeeperError> {
        let signals = Signals::block()?;
        // Fails if the process already leads a session or a process group; that is fine.
        let _ = setsid();
        std::fs::create_dir_all(&options.dir).map_err(failed("make", &options.dir))?;
        // Every snapshot of the host is below it. A user who may see one gets a mount of it
        // elsewhere.
        let owner_only = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&options.dir, owner_only)
            .map_err(failed("protect", &options.dir))?;
        let afresh = options.begin == Begin::Afresh;
        if afresh {
            // Also before locking: a keeper that may resume the session must not find the lock
            // taken.
            check_no_live_session(&options.dir)?;
        }
        let lock = lock(&options)?;
        if afresh {
            check_no_live_session(&options.dir)?;
        }
        let session = Session::begin(options.begin, &options.dir, &options.kinds)?;
        let listener = match socket::listen_at(&options.socket) {
            Ok(listener) => listener,
            Err(error) => {
                if matches!(session.past, Past::None) {
                    session.unmount();
                }
                return Err(failed("listen at", &options.socket)(error));
            }
        };
        let limits = Limits {
            grace: options.grace,
            deadline: options.deadline,
            respawns: RESPAWNS_MAX,
            pause: options.respawn_pause,
        };
        let mut run = Self {
            turns: Turns::new(limits, Instant::now()),
            stored: matches!(session.past, Past::Another { .. }),
            options,
            session,
            listener,
            signals,
            _lock: lock,
            peers: BTreeMap::new(),
            next_peer: 0,
            refuser: None,
            child: None,
            server_check: ServerCheck { at: Instant::now() + CHECK_SERVER, dying: None },
            course: Course::On,
        };
        run.remember();
        Ok(run)
    }

    /// Resumes the state of an earlier keeper's session.
    fn remember(&mut self) {
        let Past::Another { was_served, server } =
            std::mem::replace(&mut self.session.past, Past::None)
        else {
            return;
        };
        let server = server.map(|(pid, process)| {
            tracing::warn!(%pid, "a daemon of the previous keeper still serves");
            self.add_peer(Peer { socket: None, process, pid })
        });
        self.turns.resume(was_served, server);
    }

    fn add_peer(&mut self, peer: Peer) -> PeerId {
        let id = PeerId(self.next_peer);
        self.next_peer += 1;
        self.peers.insert(id, peer);
        id
    }

    /// Waits for events and handles them.
    fn turn(&mut self) -> Result<(), KeeperError> {
        for watched in self.wait()? {
            match watched {
                Watched::Signals => self.signalled(),
                Watched::Listener => self.accept(),
                Watched::Socket(peer) => self.message(peer),
                Watched::Process(peer) => self.process_ended(peer),
                Watched::Device => {
                    if let Some(refuser) = &mut self.refuser {
                        refuser.refuse();
                    }
                }
            }
        }
        self.check_server();
        // A keeper that exits starts no server.
        if self.course == Course::On {
            let actions = self.turns.tick(Instant::now());
            self.act(actions);
        }
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Watched>, KeeperError> {
        let mut watched = vec![
            (Watched::Signals, self.signals.file().as_fd()),
            (Watched::Listener, self.listener.as_fd()),
        ];
        for (id, peer) in &self.peers {
            if let Some(socket) = &peer.socket {
                watched.push((Watched::Socket(*id), socket.as_fd()));
            }
            if self.turns.server() == Some(*id) {
                watched.push((Watched::Process(*id), peer.process.as_fd()));
            }
        }
        // The devices are polled only while no server runs: polling a device that others read would
        // wake this thread on each of their requests.
        for device in self.refuser.iter().flat_map(Refuser::devices) {
            watched.push((Watched::Device, device.as_fd()));
        }
        let mut fds: Vec<_> =
            watched.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let check = self.turns.server().map(|_| self.server_check.at);
        let limit = [self.turns.next_tick(), check].into_iter().flatten().min().map(|at| {
            // Rounded up, so that the deadline has really passed.
            let wait = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
        });
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(watched.iter().zip(ready).filter(|(_, ready)| *ready).map(|((w, _), _)| *w).collect())
    }

    fn signalled(&mut self) {
        while let Some(signalled) = self.signals.next() {
            match signalled {
                Signalled::Stop => {
                    tracing::info!(stored = self.stored, "the keeper exits on a signal");
                    self.course = if self.stored { Course::Leave } else { Course::End };
                }
                Signalled::Child => self.reap(),
                Signalled::Nothing => {}
            }
        }
    }

    fn reap(&mut self) {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            tracing::info!(%status, "a daemon started by the keeper has exited");
            self.child = None;
            self.turns.respawn_failed(Instant::now());
        }
    }

    fn accept(&mut self) {
        loop {
            let (socket, pid) = match socket::accept_from(&self.listener) {
                Ok(Some(accepted)) => accepted,
                Ok(None) => return,
                Err(error) => return tracing::warn!(%error, "the keeper accepts no connections"),
            };
            match socket::process_of(&socket, pid) {
                Ok(process) if self.peers.len() < PEERS_MAX => {
                    self.add_peer(Peer { socket: Some(socket), process, pid });
                }
                Ok(_) => tracing::warn!("too many connections to the keeper"),
                Err(error) => tracing::warn!(%error, "a process that is gone"),
            }
        }
    }

    fn message(&mut self, id: PeerId) {
        let Some(socket) = self.peers.get(&id).and_then(|peer| peer.socket.as_ref()) else {
            return;
        };
        let received = match socket::receive(socket) {
            Ok(Some(received)) => received,
            Ok(None) => return self.close(id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::warn!(%error, "a connection to the keeper broke");
                return self.close(id);
            }
        };
        // Descriptors sent by the client are closed with the message.
        match decode::<Ask>(&received.bytes) {
            Ok(ask) => self.ask(id, &ask),
            Err(error) => {
                self.send_message(id, &Tell::Refused { why: error.to_string() });
                self.close(id);
            }
        }
    }

    fn ask(&mut self, id: PeerId, ask: &Ask) {
        let now = Instant::now();
        match ask {
            Ask::Claim { how } => self.claim(id, *how, now),
            Ask::Serving { stored } => {
                self.stored |= *stored && self.turns.server() == Some(id);
                self.turns.serving(id);
            }
            Ask::Goodbye => self.turns.goodbye(id, now),
            Ask::Status => {
                let status = self.status();
                self.send_message(id, &Tell::Status(status));
            }
            Ask::Stop => {
                let pid = self.peers.get(&id).map(|peer| peer.pid.as_raw_nonzero());
                tracing::info!(pid, "the keeper exits on request");
                self.course = Course::End;
            }
        }
    }

    fn claim(&mut self, id: PeerId, how: Claim, now: Instant) {
        let pid = |id| self.peers.get(&id).map(|peer: &Peer| peer.pid);
        let server = self.turns.server();
        if server.is_some_and(|server| server != id && pid(server) == pid(id)) {
            let why = "this process serves already, or has not ended since it did".to_owned();
            return self.send_message(id, &Tell::Refused { why });
        }
        let actions = self.turns.claim(id, how, now);
        self.act(actions);
    }

    fn status(&self) -> KeeperStatus {
        let number = |pid: Pid| u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
        let server = self.turns.server().and_then(|id| self.peers.get(&id));
        KeeperStatus {
            session: self.session.id.to_string(),
            pid: std::process::id(),
            server: server.map(|peer| number(peer.pid)),
            waiting: self.turns.waiting(),
            refusing: self.refuser.is_some(),
            deaths: self.turns.deaths(),
        }
    }

    /// Passes over a server that was killed and can't exit. It may wait for what only the next
    /// server can answer; see [`inlay_base::dying`].
    fn check_server(&mut self) {
        let now = Instant::now();
        if now < self.server_check.at {
            return;
        }
        let server = self.turns.server().and_then(|id| Some((id, self.peers.get(&id)?.pid)));
        let dying = server.filter(|(_, pid)| is_dying(*pid));
        let last = std::mem::replace(
            &mut self.server_check,
            ServerCheck { at: now + CHECK_SERVER, dying: dying.map(|(id, _)| id) },
        );
        if let Some((id, pid)) = dying
            && last.dying == Some(id)
        {
            tracing::warn!(%pid, "a killed daemon does not exit; the next one serves");
            self.process_ended(id);
        }
    }

    /// Handles the end of a client's connection.
    fn close(&mut self, id: PeerId) {
        self.turns.closed(id, Instant::now());
        if self.turns.server() == Some(id) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.socket = None;
            }
        } else {
            self.peers.remove(&id);
        }
        self.look_at_mounts();
    }

    fn process_ended(&mut self, id: PeerId) {
        // Its last messages may still be unread, and they matter.
        self.last_words(id);
        let actions = self.turns.dead(id, Instant::now());
        self.peers.remove(&id);
        self.look_at_mounts();
        self.act(actions);
    }

    /// Processes the unread messages of a server that has exited.
    fn last_words(&mut self, id: PeerId) {
        while let Some(socket) = self.peers.get(&id).and_then(|peer| peer.socket.as_ref())
            && let Ok(Some(received)) = socket::receive(socket)
        {
            match decode::<Ask>(&received.bytes) {
                Ok(ask @ (Ask::Serving { .. } | Ask::Goodbye | Ask::Stop)) => self.ask(id, &ask),
                // The sender cannot receive a reply any more.
                Ok(Ask::Claim { .. } | Ask::Status) | Err(_) => {}
            }
        }
    }

    /// Stops the keeper when none of its connections is mounted any more.
    fn look_at_mounts(&mut self) {
        if self.session.connections.iter().all(Connection::has_ended) {
            tracing::info!("the keeper exits: no mount of its session is left");
            self.course = Course::End;
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Grant(id) => self.grant(id),
                Action::AskToLeave(id) => self.ask_to_leave(id),
                Action::Kill(id) => self.kill(id),
                Action::Respawn => self.respawn(),
                Action::BeginRefusing => self.begin_refusing(),
                Action::EndRefusing => self.refuser = None,
            }
        }
    }

    fn grant(&mut self, id: PeerId) {
        let connections = self.session.connections.iter().map(|connection| ConnectionNote {
            kind: connection.kind,
            init: hex::encode(&connection.init),
            mountpoint: path_bytes(&connection.mountpoint),
        });
        let connections = connections.collect();
        let kept = Tell::Kept { session: self.session.id.to_string(), connections };
        let devices = self.session.connections.iter().map(|connection| connection.device.as_fd());
        let descriptors: Vec<_> =
            std::iter::once(self.session.ledger.as_fd()).chain(devices).collect();
        if let Err(error) = self.send(id, &kept, &descriptors) {
            tracing::warn!(%error, "can't hand the session to the next daemon");
        }
    }

    fn send_message(&self, id: PeerId, tell: &Tell) {
        if let Err(error) = self.send(id, tell, &[]) {
            tracing::debug!(%error, "lost a message to the keeper");
        }
    }

    fn send(
        &self,
        id: PeerId,
        tell: &Tell,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), KeeperError> {
        let bytes = encode(tell)?;
        let socket = self.peers.get(&id).and_then(|peer| peer.socket.as_ref());
        Ok(socket::send(socket.ok_or(KeeperError::Ended)?, &bytes, descriptors)?)
    }

    fn ask_to_leave(&self, id: PeerId) {
        if self.peers.get(&id).is_some_and(|peer| peer.socket.is_none()) {
            // A server without a connection cannot be asked. The requests it leaves unanswered come
            // again.
            self.kill(id);
        } else {
            self.send_message(id, &Tell::Leave);
        }
    }

    fn kill(&self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        tracing::warn!(pid = %peer.pid, "killing a daemon that does not exit");
        if let Err(error) = pidfd_send_signal(&peer.process, Signal::KILL) {
            tracing::error!(%error, "can't kill the daemon");
        }
    }

    fn respawn(&mut self) {
        let Some((program, arguments)) =
            self.options.respawn.as_ref().and_then(|command| command.split_first())
        else {
            return;
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        match command.spawn() {
            Ok(child) => {
                tracing::warn!(pid = child.id(), "the daemon died; started another");
                self.child = Some(child);
            }
            Err(error) => {
                tracing::error!(%error, ?program, "can't start a daemon");
                self.turns.respawn_failed(Instant::now());
            }
        }
    }

    fn begin_refusing(&mut self) {
        let ledger = self.session.ledger.try_clone().map_err(Into::into);
        match ledger.and_then(|ledger| Refuser::begin(&self.session.connections, ledger)) {
            Ok(refuser) => {
                tracing::error!("no daemon came back in time; requests fail with EIO");
                self.refuser = Some(refuser);
            }
            Err(error) => tracing::error!(%error, "no daemon came back; requests keep waiting"),
        }
    }

    fn end(&self) {
        if self.course == Course::End {
            self.session.unmount();
        }
        if let Err(error) = std::fs::remove_file(&self.options.socket) {
            tracing::debug!(%error, "the keeper's socket");
        }
    }
}

fn lock(options: &KeeperOptions) -> Result<OwnedFd, KeeperError> {
    let path = &options.dir;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let refused = |errno: rustix::io::Errno| failed("lock", path)(errno.into());
    let dir = openat(CWD, path, flags, Mode::empty()).map_err(refused)?;
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(KeeperError::Running(path.clone())),
        Err(errno) => Err(failed("lock", path)(errno.into())),
    }
}

fn path_bytes(path: &std::path::Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}
