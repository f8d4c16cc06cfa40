//! Client of a sandbox's monitor.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use inlay_base::sockets;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::task::spawn_blocking;

use super::error::SandboxError;
use super::exit::Exit;
use super::layout::Layout;
use super::options::Stdin;
use super::process::resolve_exec;
use super::protocol::{
    ExecOptions, Failure, LINE_LEN_MAX, MonitorStatus, Reply, Request, Started, StdinFlow,
    StreamPosition, WindowSize,
};
use super::spawn;

/// Timeout for requests that the monitor answers immediately.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Timeout for requests that run something: slightly more than the monitor grants the runtime.
const RUN_WITHIN: Duration = Duration::from_secs(70);

/// A handle to the monitor of one sandbox. Cheap: each request opens its own connection. All
/// methods block, except [`Monitor::ended`].
#[derive(Debug, Clone)]
pub struct Monitor {
    layout: Layout,
    flow: StdinFlow,
}

/// The input and output of a process, as frames in both directions (see [`super::Frame`]).
#[derive(Debug)]
pub struct Stream {
    /// The connection. It has no timeouts.
    pub socket: UnixStream,
    /// The process.
    pub started: Started,
}

/// A frozen sandbox. Dropping it closes the connection, upon which the monitor thaws the sandbox.
#[derive(Debug)]
pub struct Frozen {
    monitor: Monitor,
    connection: Option<Connection>,
}

/// The outcome of a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawed {
    /// How long the sandbox was frozen.
    pub frozen: Duration,
    /// Whether it stayed frozen until [`Frozen::thaw`]. False if the limit expired, the sandbox was
    /// killed, or another program thawed it: data read in the meantime may not be from a single
    /// point in time.
    pub held: bool,
}

impl Monitor {
    /// Starts the monitor of a sandbox. Its record, bundle and root must exist. The monitor creates
    /// the container, which then waits for [`Monitor::start`]. `words` are the arguments, after the
    /// program name, that make this program a monitor: `monitor --state STATE --sandbox ID`.
    pub fn spawn(layout: &Layout, words: &[OsString]) -> Result<Self, SandboxError> {
        Self::spawn_with(layout, &spawn::own_program()?, words)
    }

    /// Like [`Monitor::spawn`], but runs `program` instead of the current executable.
    pub fn spawn_with(
        layout: &Layout,
        program: &Path,
        words: &[OsString],
    ) -> Result<Self, SandboxError> {
        spawn::spawn(layout, program, words)
    }

    /// Returns a handle for the sandbox in `layout`. The monitor need not be running.
    pub fn of(layout: &Layout) -> Self {
        Self { layout: layout.clone(), flow: StdinFlow::default() }
    }

    /// Sets the flow control of stdin for streams opened through this handle.
    #[must_use]
    pub fn with_stdin(mut self, flow: StdinFlow) -> Self {
        self.flow = flow;
        self
    }

    /// Reports whether the monitor is running.
    pub fn is_alive(&self) -> Result<bool, SandboxError> {
        is_alive(&self.layout)
    }

    /// Starts the first process. The container must have been created.
    pub fn start(&self) -> Result<Started, SandboxError> {
        match self.ask(&Request::Start, RUN_WITHIN)? {
            Reply::Started(started) => Ok(started),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Returns the state of the sandbox.
    pub fn status(&self) -> Result<MonitorStatus, SandboxError> {
        match self.ask(&Request::Status, ANSWER_WITHIN)? {
            Reply::Status(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Runs a program in the sandbox. The user is resolved with the sandbox's own `/etc/passwd` and
    /// `/etc/group`.
    pub fn exec(&self, options: &ExecOptions) -> Result<Stream, SandboxError> {
        let process = resolve_exec(&self.layout, options)?;
        let (stdin, output) = (options.stdin, options.output);
        self.stream(&Request::Exec { process, stdin, output, flow: self.flow })
    }

    /// Attaches to the input and output of the first process. Output starts now, or, for a client
    /// that reconnects, right after the position `shown`; fails if the monitor has already dropped
    /// some of that output. Earlier output is in the log.
    pub fn attach(
        &self,
        stdin: Stdin,
        size: Option<WindowSize>,
        shown: Option<StreamPosition>,
    ) -> Result<Stream, SandboxError> {
        self.stream(&Request::Attach { size, stdin, shown, flow: self.flow })
    }

    /// Sends signal `number` to the first process.
    pub fn signal(&self, number: i32) -> Result<(), SandboxError> {
        match self.ask(&Request::Signal { number }, ANSWER_WITHIN)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Freezes all processes of the sandbox until the result is dropped, this process exits, or
    /// `limit` expires. If they are not all frozen `within` the given time, thaws them and fails
    /// with [`SandboxError::NotFrozen`].
    pub fn freeze(&self, within: Duration, limit: Duration) -> Result<Frozen, SandboxError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut connection = self.connect(limit + ANSWER_WITHIN)?;
        let request = Request::Freeze { limit_ms: millis(limit), within_ms: Some(millis(within)) };
        match self.call(&mut connection, &request)? {
            Reply::Frozen { .. } => {
                Ok(Frozen { monitor: self.clone(), connection: Some(connection) })
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Blocks until the first process has exited, for at most `limit`. Returns `None` on timeout.
    pub fn wait(&self, limit: Duration) -> Result<Option<Exit>, SandboxError> {
        let outcome = self.connect(limit).and_then(|mut connection| {
            let reply = self.call(&mut connection, &Request::Wait);
            if connection.timed_out { Ok(None) } else { reply.map(Some) }
        });
        match outcome {
            Ok(Some(Reply::Exit(exit))) => Ok(Some(exit)),
            Ok(None) => Ok(None),
            Ok(Some(other)) => Err(self.unexpected(&other)),
            // The monitor exits soon after the first process, having recorded its exit.
            Err(error) => match Exit::read(&self.layout)? {
                Some(exit) => Ok(Some(exit)),
                None => Err(error),
            },
        }
    }

    /// Waits until the first process has exited, without blocking a thread.
    pub async fn ended(&self) -> Result<Exit, SandboxError> {
        let outcome = self.reply_to_wait().await;
        match outcome {
            Ok(Reply::Exit(exit)) => Ok(exit),
            Ok(Reply::Failed(failure)) => Err(self.refused(failure)),
            Ok(other) => Err(self.unexpected(&other)),
            // The monitor exits soon after the first process, having recorded its exit.
            Err(error) => match Exit::read(&self.layout)? {
                Some(exit) => Ok(exit),
                None => Err(error),
            },
        }
    }

    async fn reply_to_wait(&self) -> Result<Reply, SandboxError> {
        let monitor = self.clone();
        let asked = spawn_blocking(move || {
            let mut connection = monitor.connect(ANSWER_WITHIN)?;
            connection.send(&Request::Wait).map_err(|error| monitor.failed(&error))?;
            let socket = connection.into_socket();
            let socket = socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
            socket.map_err(|error| monitor.failed(&error))
        });
        let socket = asked.await.map_err(|error| self.monitor_error(error.to_string()))??;
        let limit = u64::try_from(LINE_LEN_MAX).unwrap_or(u64::MAX);
        let mut line = Vec::new();
        let read = async {
            let socket = tokio::net::UnixStream::from_std(socket)?;
            tokio::io::BufReader::new(socket).take(limit).read_until(b'\n', &mut line).await
        };
        if read.await.map_err(|error| self.failed(&error))? == 0 {
            return Err(self.failed(&io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(|error| self.monitor_error(error.to_string()))
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
        // A zero timeout is an error in the standard library.
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
            Failure::NotFrozen { limit_ms, stuck } => {
                SandboxError::NotFrozen { sandbox, limit: Duration::from_millis(limit_ms), stuck }
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

    /// Returns the sandbox's id as text, for errors.
    pub(super) fn sandbox(&self) -> String {
        self.layout.id().to_string()
    }

    pub(super) fn monitor_error(&self, why: String) -> SandboxError {
        let log = self.layout.monitor_log();
        SandboxError::Monitor { sandbox: self.layout.id().to_string(), why, log }
    }
}

impl Frozen {
    /// Thaws the sandbox and returns the outcome.
    pub fn thaw(mut self) -> Result<Thawed, SandboxError> {
        let Some(mut connection) = self.connection.take() else {
            return Err(self.monitor.monitor_error("it is gone".to_owned()));
        };
        // Best effort: once the limit has expired, the reply is already here and the monitor no
        // longer reads.
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

/// Reports whether the monitor of a sandbox is alive, i.e. holds its lock. The kernel releases the
/// lock when the process exits.
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

    /// Reads one line, byte by byte, so that nothing after it is consumed from the socket.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::os::unix::net::UnixListener;

    #[tokio::test]
    async fn a_monitor_that_ends_without_an_answer_is_said_to_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path(), &"sb-0123456789ab".parse().unwrap());
        let socket = layout.monitor_socket();
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let gone = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            io::BufReader::new(stream).read_line(&mut String::new()).unwrap();
        });
        let monitor = Monitor { layout, flow: StdinFlow::default() };
        let error = monitor.ended().await.unwrap_err().to_string();
        assert!(
            error.contains(&io::Error::from(io::ErrorKind::UnexpectedEof).to_string()),
            "{error}"
        );
        gone.join().unwrap();
    }
}
