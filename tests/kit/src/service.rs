//! A service manager as systemd is one, as far as descriptors go: it keeps those that its service
//! sends, and gives them to the service when it starts it again.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::Pid;
use tempfile::TempDir;

use crate::scratch::scratch;

/// How long a service may take until it is ready, or has ended. Generous: the machine may be busy with
/// a build.
const PATIENCE: Duration = Duration::from_mins(1);
/// The most descriptors that are kept.
const ROOM: usize = 32;
const LONGEST: usize = 4096;
/// Ends the thread that listens.
const END: &[u8] = b"END";

/// Becomes the program in its arguments, with the descriptors that come through its standard input
/// where a service has those that it is given: the rest of what is here denies unsafe code.
const EXEC: &str = "
import fcntl, os, socket, sys
with socket.socket(fileno=os.dup(0)) as s:
    names, fds, _, _ = socket.recv_fds(s, 65536, 64)
high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
for fd in fds:
    os.close(fd)
for place, fd in enumerate(high):
    os.dup2(fd, 3 + place)
os.dup2(os.open('/dev/null', os.O_RDONLY), 0)
if high:
    os.environ['LISTEN_PID'] = str(os.getpid())
    os.environ['LISTEN_FDS'] = str(len(high))
    os.environ['LISTEN_FDNAMES'] = names.decode().strip()
os.execvp(sys.argv[1], sys.argv[1:])
";

/// A descriptor that the manager keeps.
#[derive(Debug)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Whether the manager may poll it.
    pub polled: bool,
    /// The descriptor.
    pub descriptor: OwnedFd,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stored: Vec<Stored>,
    /// The processes that said that they are ready.
    ready: Vec<u32>,
}

/// The manager of one service.
#[derive(Debug)]
pub struct Manager {
    socket: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    // Dropped last.
    _dir: TempDir,
}

/// A service that runs. It is killed when this is dropped; what it has started is not.
#[derive(Debug)]
pub struct Service {
    child: Child,
    shared: Arc<Shared>,
}

impl Manager {
    /// One that keeps nothing yet.
    pub fn new() -> io::Result<Self> {
        let dir = scratch()?;
        let socket = dir.path().join("notify");
        let listener = UnixDatagram::bind(&socket)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let listen = move || while listen(&listener, &theirs).is_ok_and(|go_on| go_on) {};
        let thread = thread::Builder::new().name("manager".into()).spawn(listen)?;
        Ok(Self { socket, shared, thread: Some(thread), _dir: dir })
    }

    /// Starts the service: `command` with its variables, and with all that is kept.
    pub fn start(&self, command: &Command) -> io::Result<Service> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        {
            let state = self.shared.state.lock();
            let names: Vec<&str> = state.stored.iter().map(|stored| stored.name.as_str()).collect();
            let descriptors: Vec<_> =
                state.stored.iter().map(|stored| stored.descriptor.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            // One byte more than the names, because an empty message is the end of the socket.
            let names = format!("{}\n", names.join(":"));
            let text = [io::IoSlice::new(names.as_bytes())];
            sendmsg(&ours, &text, &mut control, SendFlags::NOSIGNAL)?;
        }
        let mut start = Command::new("python3");
        start.args(["-c", EXEC]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => start.env(name, value),
                None => start.env_remove(name),
            };
        }
        start.env("NOTIFY_SOCKET", &self.socket).stdin(theirs).stdout(Stdio::null());
        Ok(Service { child: start.spawn()?, shared: Arc::clone(&self.shared) })
    }

    /// The names of what is kept, sorted.
    pub fn names(&self) -> Vec<String> {
        let state = self.shared.state.lock();
        let mut names: Vec<_> = state.stored.iter().map(|stored| stored.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Lets `change` change what is kept.
    pub fn with_stored<T>(&self, change: impl FnOnce(&mut Vec<Stored>) -> T) -> T {
        change(&mut self.shared.state.lock().stored)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let told = UnixDatagram::unbound().and_then(|own| own.send_to(END, &self.socket));
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

impl Service {
    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until it says that it is ready; fails if it ends before.
    pub fn wait_until_ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let mut state = self.shared.state.lock();
                if state.ready.contains(&self.child.id()) {
                    return Ok(());
                }
                self.shared.changed.wait_for(&mut state, Duration::from_millis(20));
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("the service ended: {status}")));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("the service is not ready"));
            }
        }
    }

    /// Waits until its process has ended.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("the service does not end"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Receives one message, and does what it says. Returns whether there may be more.
fn listen(socket: &UnixDatagram, shared: &Shared) -> io::Result<bool> {
    let mut bytes = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let text = bytes.get(..got.bytes).unwrap_or_default();
    if text == END {
        return Ok(false);
    }
    let text = String::from_utf8_lossy(text);
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let mut state = shared.state.lock();
    if value("FDSTORE") == "1" {
        let (name, polled) = (value("FDNAME"), value("FDPOLL") != "0");
        let stored = |descriptor| Stored { name: name.to_owned(), polled, descriptor };
        state.stored.extend(descriptors.into_iter().map(stored));
    }
    if value("FDSTOREREMOVE") == "1" {
        state.stored.retain(|stored| stored.name != value("FDNAME"));
    }
    if value("READY") == "1" {
        state.ready.extend(value("MAINPID").parse::<u32>());
        shared.changed.notify_all();
    }
    Ok(true)
}

/// The names and values of a unit's `section`: as much of systemd.syntax(7) as a plain unit needs.
pub fn unit_values<'u>(unit: &'u str, section: &str) -> Vec<(&'u str, &'u str)> {
    let mut inside = false;
    let mut values = Vec::new();
    for line in unit.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name == section;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once('=')
        {
            values.push((name.trim(), value.trim()));
        }
    }
    values
}
