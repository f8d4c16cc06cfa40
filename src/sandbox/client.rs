//! Talks to the monitor of a sandbox.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::SandboxError;
use super::exit::Exit;
use super::layout::Layout;
use super::options::Stdin;
use super::process::resolve_exec;
use super::protocol::{
    ExecOptions, Failure, LINE_LEN_MAX, MonitorStatus, Reply, Request, Shown, Started, WindowSize,
};
use super::spawn;
use crate::sockets;

/// How long a monitor may take for what it does at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a monitor may take to run something: a little more than it gives the runtime.
const RUN_WITHIN: Duration = Duration::from_secs(70);

/// The monitor of one sandbox. Cheap: connects when asked something. All calls block.
#[derive(Debug, Clone)]
pub struct Monitor {
    layout: Layout,
}

/// A process's input and output: frames both ways (see [`super::Frame`]).
#[derive(Debug)]
pub struct Stream {
    /// The connection. It has no time limits.
    pub socket: UnixStream,
    /// The process.
    pub started: Started,
}

/// A sandbox that stands still. Dropping it lets the sandbox run on.
#[derive(Debug)]
pub struct Frozen {
    monitor: Monitor,
    connection: Option<Connection>,
}

/// How a freezing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawed {
    /// How long the sandbox stood still.
    pub frozen: Duration,
    /// Whether it stood still until it was let go. If not, the limit was over or it was killed: what was read in the meantime may be of different moments.
    pub held: bool,
}

impl Monitor {
    /// Starts the monitor of a sandbox whose record, bundle and root are there. It creates the
    /// container, which then waits for [`Monitor::start`]. `words` make this program a monitor:
    /// `monitor --state STATE --sandbox ID`, after the name of the program.
    pub fn spawn(layout: &Layout, words: &[OsString]) -> Result<Self, SandboxError> {
        Self::spawn_with(layout, &spawn::own_program()?, words)
    }

    /// The same with another program than the one that runs.
    pub fn spawn_with(
        layout: &Layout,
        program: &Path,
        words: &[OsString],
    ) -> Result<Self, SandboxError> {
        spawn::spawn(layout, program, words)
    }

    /// That of the sandbox in `layout`, which may not run.
    pub fn of(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    /// Whether there is one.
    pub fn is_alive(&self) -> Result<bool, SandboxError> {
        is_alive(&self.layout)
    }

    /// Starts the first process, which was created.
    pub fn start(&self) -> Result<Started, SandboxError> {
        match self.ask(&Request::Start, RUN_WITHIN)? {
            Reply::Started(started) => Ok(started),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How the sandbox is.
    pub fn status(&self) -> Result<MonitorStatus, SandboxError> {
        match self.ask(&Request::Status, ANSWER_WITHIN)? {
            Reply::Status(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Runs a program in the sandbox. Reads the sandbox's own `/etc/passwd` and `/etc/group`.
    pub fn exec(&self, options: &ExecOptions) -> Result<Stream, SandboxError> {
        let process = resolve_exec(&self.layout, options)?;
        let (stdin, output) = (options.stdin, options.output);
        self.stream(&Request::Exec { process, stdin, output })
    }

    /// The input and output of the first process. The output from now on; or, for who was cut off,
    /// after what was `shown`, which is refused if not all of that is kept any more. The log has what
    /// was printed before.
    pub fn attach(
        &self,
        stdin: Stdin,
        size: Option<WindowSize>,
        shown: Option<Shown>,
    ) -> Result<Stream, SandboxError> {
        self.stream(&Request::Attach { size, stdin, shown })
    }

    /// Sends a signal to the first process.
    pub fn signal(&self, number: i32) -> Result<(), SandboxError> {
        match self.ask(&Request::Signal { number }, ANSWER_WITHIN)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Lets no process of the sandbox run until the answer is dropped, this process ends, or `limit`
    /// is over.
    pub fn freeze(&self, limit: Duration) -> Result<Frozen, SandboxError> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut connection = self.connect(limit + ANSWER_WITHIN)?;
        match self.call(&mut connection, &Request::Freeze { limit_ms })? {
            Reply::Frozen { .. } => {
                Ok(Frozen { monitor: self.clone(), connection: Some(connection) })
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Waits until the first process has ended, but not longer than `limit`. `None`: it has not.
    pub fn wait(&self, limit: Duration) -> Result<Option<Exit>, SandboxError> {
        let outcome = self.connect(limit).and_then(|mut connection| {
            let reply = self.call(&mut connection, &Request::Wait);
            if connection.timed_out { Ok(None) } else { reply.map(Some) }
        });
        match outcome {
            Ok(Some(Reply::Exit(exit))) => Ok(Some(exit)),
            Ok(None) => Ok(None),
            Ok(Some(other)) => Err(self.unexpected(&other)),
            // It ends soon after the first process.
            Err(error) => match Exit::read(&self.layout)? {
                Some(exit) => Ok(Some(exit)),
                None => Err(error),
            },
        }
    }

    fn stream(&self, request: &Request) -> Result<Stream, SandboxError> {
        let mut connection = self.connect(RUN_WITHIN)?;
        match self.call(&mut connection, request)? {
            Reply::Started(started) => {
                let socket = connection.into_socket().map_err(|error| self.failed(&error))?;
                Ok(Stream { socket, started })
            }
            other => Err(self.unexpected(&other)),
        }
    }

    fn ask(&self, request: &Request, limit: Duration) -> Result<Reply, SandboxError> {
        let mut connection = self.connect(limit)?;
        self.call(&mut connection, request)
    }

    fn connect(&self, limit: Duration) -> Result<Connection, SandboxError> {
        let socket = match sockets::connect(&self.layout.monitor_socket()) {
            Ok(socket) => socket,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Err(SandboxError::NotRunning(self.layout.id().to_string()));
            }
            Err(error) => return Err(self.failed(&error)),
        };
        // A limit of nothing would be none.
        let limit = limit.max(Duration::from_millis(1));
        socket.set_read_timeout(Some(limit)).map_err(|error| self.failed(&error))?;
        socket.set_write_timeout(Some(ANSWER_WITHIN)).map_err(|error| self.failed(&error))?;
        Ok(Connection { socket, timed_out: false })
    }

    fn call(&self, connection: &mut Connection, request: &Request) -> Result<Reply, SandboxError> {
        connection.send(request).map_err(|error| self.failed(&error))?;
        match connection.reply().map_err(|error| self.failed(&error))? {
            Reply::Failed(failure) => Err(self.refused(failure)),
            reply => Ok(reply),
        }
    }

    pub(super) fn refused(&self, failure: Failure) -> SandboxError {
        let sandbox = self.layout.id().to_string();
        match failure {
            Failure::NotRunning => SandboxError::NotRunning(sandbox),
            Failure::Started => SandboxError::Started(sandbox),
            Failure::Exec { message, code } => SandboxError::Exec { message, code },
            Failure::NotFrozen { limit_ms } => {
                SandboxError::NotFrozen { sandbox, limit: Duration::from_millis(limit_ms) }
            }
            Failure::Other { message } => SandboxError::Refused(message),
        }
    }

    pub(super) fn failed(&self, error: &io::Error) -> SandboxError {
        self.monitor_error(error.to_string())
    }

    fn unexpected(&self, reply: &Reply) -> SandboxError {
        self.monitor_error(format!("it answers {reply:?}"))
    }

    /// Whose it is.
    pub(super) fn sandbox(&self) -> String {
        self.layout.id().to_string()
    }

    pub(super) fn monitor_error(&self, why: String) -> SandboxError {
        let log = self.layout.monitor_log();
        SandboxError::Monitor { sandbox: self.layout.id().to_string(), why, log }
    }
}

impl Frozen {
    /// Lets the sandbox run on, and says how it was.
    pub fn thaw(mut self) -> Result<Thawed, SandboxError> {
        let Some(mut connection) = self.connection.take() else {
            return Err(self.monitor.monitor_error("it is gone".to_owned()));
        };
        // After the limit the answer is there already, and nobody listens any more.
        connection.socket.write_all(b"\n").ok();
        match connection.reply() {
            Ok(Reply::Thawed { frozen_micros, held }) => {
                Ok(Thawed { frozen: Duration::from_micros(frozen_micros), held })
            }
            Ok(other) => Err(self.monitor.unexpected(&other)),
            Err(error) => {
                self.connection = Some(connection);
                Err(self.monitor.failed(&error))
            }
        }
    }
}

/// Whether the monitor of a sandbox lives: it holds a lock, which ends with its process.
pub(super) fn is_alive(layout: &Layout) -> Result<bool, SandboxError> {
    let path = layout.monitor_lock();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(SandboxError::io("open", &path)(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(SandboxError::io("look at the lock", &path)(errno)),
    }
}

#[derive(Debug)]
struct Connection {
    socket: UnixStream,
    timed_out: bool,
}

impl Connection {
    fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.socket.write_all(&line)
    }

    /// One line. Nothing after it is taken from the socket.
    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            match self.socket.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => break,
                Ok(_) => line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.timed_out = error.kind() == io::ErrorKind::WouldBlock;
                    return Err(error);
                }
            }
            if line.len() > LINE_LEN_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
        }
        Ok(serde_json::from_slice(&line)?)
    }

    fn into_socket(self) -> io::Result<UnixStream> {
        self.socket.set_read_timeout(None)?;
        self.socket.set_write_timeout(None)?;
        Ok(self.socket)
    }
}
