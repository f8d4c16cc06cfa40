//! Starts a background daemon on demand, exactly one for any number of concurrent commands.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::bytes::filled;
use inlay_base::durable;
use inlay_base::programs::SERVICE_VARIABLES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, setsid};
use rustix::stdio::dup2_stdout;

use crate::client::Client;
use crate::error::ClientError;
use crate::paths::Paths;
use crate::wire::StatusAnswer;

const READY: &[u8] = b"ready\n";

/// Deadline for a new daemon to answer: it may have to start a keeper, or wait for a daemon that is
/// stopping.
const START_WITHIN: Duration = Duration::from_mins(1);
/// Time for an unwanted daemon to clean up before it is killed.
const CLEAR_UP_WITHIN: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);
/// Retries of a failed start.
const TRIES: u32 = 2;

/// Maximum length of a startup report, in bytes.
const REPORT_LEN_MAX: usize = 64 << 10;

/// Returns a client of the daemon at `paths` and its status. If none runs, starts this program with
/// the arguments `words` as a daemon, which reports readiness on stdout (see [`Readiness`]).
pub fn ensure(paths: &Paths, words: &[OsString]) -> Result<(Client, StatusAnswer), ClientError> {
    let client = Client::new(paths)?;
    if let Some(status) = client.status()? {
        return Ok((client, status));
    }
    let run = paths.run();
    durable::create_dirs(&run).map_err(ClientError::io("make the directory", &run))?;
    let deadline = Instant::now() + START_WITHIN;
    let lock = lock(paths, deadline)?;
    let mut tries = TRIES;
    let status = loop {
        // The previous holder of the lock may have started one.
        if let Some(status) = client.status()? {
            break status;
        }
        match (spawn(paths, words, deadline), client.status()?) {
            // A failed start with a daemon present: the keeper had respawned one concurrently.
            (_, Some(status)) => break status,
            // That one may have found nothing to serve and exited; and one that was ready may have
            // been killed.
            (Ok(()) | Err(ClientError::Start(_)), None) if tries > 0 => tries -= 1,
            (spawned, None) => {
                spawned?;
                return Err(ClientError::NotRunning(paths.state().to_owned()));
            }
        }
        thread::sleep(PAUSE);
    };
    drop(lock);
    Ok((client, status))
}

fn lock(paths: &Paths, deadline: Instant) -> Result<File, ClientError> {
    let path = paths.start_lock();
    let failed = |what| ClientError::io(what, &path);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(failed("open"))?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => {
                return Err(ClientError::StartTimeout { limit: START_WITHIN, log: paths.log() });
            }
            Err(errno) => return Err(ClientError::io("lock", &path)(errno)),
        }
    }
}

fn spawn(paths: &Paths, words: &[OsString], deadline: Instant) -> Result<(), ClientError> {
    let program = own_program()?;
    let mut command = Command::new(&program);
    command.args(words).stderr(open_log(paths)?);
    // The daemon is not part of the service that this command may run in.
    for variable in SERVICE_VARIABLES {
        command.env_remove(variable);
    }
    start(command, paths, deadline)
}

/// Returns an executable path of the running program. The file may have been replaced since; then
/// /proc/self/exe still runs it.
pub fn own_program() -> Result<PathBuf, ClientError> {
    let link: PathBuf = "/proc/self/exe".into();
    let program = fs::read_link(&link).map_err(ClientError::io("read", &link))?;
    Ok(if program.exists() { program } else { link })
}

/// Opens the log of background processes, readable by its owner only.
pub fn open_log(paths: &Paths) -> Result<File, ClientError> {
    let path = paths.log();
    if let Some(dir) = path.parent() {
        durable::create_dirs(dir).map_err(ClientError::io("make the directory", dir))?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(&path).map_err(ClientError::io("open", &path))
}

fn start(mut command: Command, paths: &Paths, deadline: Instant) -> Result<(), ClientError> {
    let program = PathBuf::from(command.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // Does not pin the directory in which the command was called.
    command.current_dir("/");
    let mut child = command.spawn().map_err(ClientError::io("start", &program))?;
    let log = paths.log();
    match report(&mut child, deadline) {
        Ok(Some(report)) if report == READY => Ok(()),
        Ok(Some(report)) if !report.is_empty() => {
            end(&mut child)?;
            Err(ClientError::Start(String::from_utf8_lossy(&report).trim().to_owned()))
        }
        Ok(Some(_)) => {
            let status = end(&mut child)?;
            let log = log.display();
            Err(ClientError::Start(format!("the daemon has ended ({status}); see {log}")))
        }
        Ok(None) => {
            end(&mut child)?;
            Err(ClientError::StartTimeout { limit: START_WITHIN, log })
        }
        Err(error) => {
            end(&mut child)?;
            Err(ClientError::io("read the report of", &program)(error))
        }
    }
}

/// Reads the child's report: one line, or everything written before it closed stdout. `None` on
/// timeout.
fn report(child: &mut Child, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let Some(mut pipe) = child.stdout.take() else { return Ok(None) };
    let mut report = Vec::new();
    let mut piece = [0; 4096];
    while !report.ends_with(b"\n") && report.len() < REPORT_LEN_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pipe.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match pipe.read(&mut piece)? {
            0 => break,
            len => report.extend_from_slice(filled(&piece, len)?),
        }
    }
    Ok(Some(report))
}

/// Ends a child that did not become ready: SIGTERM, then SIGKILL after [`CLEAR_UP_WITHIN`].
fn end(child: &mut Child) -> Result<std::process::ExitStatus, ClientError> {
    let mut ended = || -> io::Result<std::process::ExitStatus> {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        kill_process(Pid::from_child(child), Signal::TERM)?;
        let deadline = Instant::now() + CLEAR_UP_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(PAUSE);
        }
        child.kill()?;
        child.wait()
    };
    ended().map_err(ClientError::io("end", "the daemon in the background".as_ref()))
}

/// The child's end of the startup report.
#[derive(Debug)]
pub struct Readiness(());

impl Readiness {
    /// Leaves the terminal's session, so that closing the terminal does not end this process. Call
    /// it first, and print nothing to stdout before [`Readiness::ready`] or [`Readiness::failed`].
    pub fn new() -> Self {
        // Fails if the process is a session leader already, which is fine.
        let _ = setsid();
        Self(())
    }

    /// Reports that the daemon answers. From then on stdout is the log.
    pub fn ready(self) -> io::Result<()> {
        self.say(READY)
    }

    /// Reports why the daemon failed to start.
    pub fn failed(self, error: &dyn std::error::Error) -> io::Result<()> {
        self.say(format!("{}\n", error.to_string().replace('\n', " ")).as_bytes())
    }

    fn say(self, line: &[u8]) -> io::Result<()> {
        let Self(()) = self;
        let mut out = io::stdout().lock();
        out.write_all(line)?;
        out.flush()?;
        Ok(dup2_stdout(io::stderr())?)
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<(), ClientError> {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        start(command, &Paths::of(dir.path()), Instant::now() + limit)
    }

    #[test]
    fn the_caller_goes_on_when_the_process_is_ready() {
        shell("echo ready", Duration::from_mins(1)).unwrap();
    }

    #[test]
    fn an_error_of_the_process_is_the_callers_error() {
        let long = Duration::from_mins(1);
        let error = shell("echo 'no such thing'; exec sleep 1000", long).unwrap_err();
        assert_eq!(error.to_string(), "no such thing");
        let error = shell("exit 3", long).unwrap_err().to_string();
        assert!(error.contains("log"), "{error}");
    }

    #[test]
    fn a_process_that_does_not_get_ready_is_ended() {
        let error = shell("exec sleep 1000", Duration::from_millis(1)).unwrap_err();
        assert!(matches!(error, ClientError::StartTimeout { .. }), "{error}");
    }
}
