//! Starts a daemon in the background for a command that needs one: one, whoever asks at once.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, setsid};
use rustix::stdio::dup2_stdout;

use super::api::StatusAnswer;
use super::client::Client;
use super::error::DaemonError;
use super::notify;
use super::paths::Paths;
use crate::mount::make_private_dirs;

const READY: &[u8] = b"ready\n";

/// How long a daemon may take until it answers: a keeper has to be started, and a daemon that is
/// about to end may have to be waited for.
const START_WITHIN: Duration = Duration::from_mins(1);
/// How long a daemon that is not wanted any more may clear up after itself.
const CLEAR_UP_WITHIN: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);
/// How often a start that fails is tried again.
const TRIES: u32 = 2;

/// The longest report that is read, in bytes.
const REPORT_LEN_MAX: usize = 64 << 10;

/// A client of the daemon at `paths`, and how that is. If there is none, this program is started with
/// `words`, which make it a daemon that says on standard output how it went (see [`Readiness`]).
pub fn ensure(paths: &Paths, words: &[OsString]) -> Result<(Client, StatusAnswer), DaemonError> {
    let client = Client::new(paths)?;
    if let Some(status) = client.status()? {
        return Ok((client, status));
    }
    make_private_dirs(&paths.run())?;
    let deadline = Instant::now() + START_WITHIN;
    let lock = lock(paths, deadline)?;
    let mut tries = TRIES;
    let status = loop {
        // Who held the lock before may have started one.
        if let Some(status) = client.status()? {
            break status;
        }
        match (spawn(paths, words, deadline), client.status()?) {
            // If it failed, then because the keeper had started one at the same time.
            (_, Some(status)) => break status,
            // That one may have found nothing to serve, and ended at once; and one that was ready may
            // have been killed.
            (Ok(()) | Err(DaemonError::Start(_)), None) if tries > 0 => tries -= 1,
            (spawned, None) => {
                spawned?;
                return Err(DaemonError::NotRunning(paths.state().to_owned()));
            }
        }
        thread::sleep(PAUSE);
    };
    drop(lock);
    Ok((client, status))
}

fn lock(paths: &Paths, deadline: Instant) -> Result<File, DaemonError> {
    let path = paths.start_lock();
    let failed = |what| DaemonError::io(what, &path);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(failed("open"))?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => {
                return Err(DaemonError::StartTimeout { limit: START_WITHIN, log: paths.log() });
            }
            Err(errno) => return Err(DaemonError::io("lock", &path)(errno)),
        }
    }
}

fn spawn(paths: &Paths, words: &[OsString], deadline: Instant) -> Result<(), DaemonError> {
    let program = own_program()?;
    let mut command = Command::new(&program);
    command.args(words).stderr(open_log(paths)?);
    // It is no part of the service that this command may be of.
    for variable in notify::VARIABLES {
        command.env_remove(variable);
    }
    start(command, paths, deadline)
}

/// The program that runs, by a path that can be run again: another process may have replaced the
/// file in the meantime.
pub(super) fn own_program() -> Result<PathBuf, DaemonError> {
    let link: PathBuf = "/proc/self/exe".into();
    let program = fs::read_link(&link).map_err(DaemonError::io("read", &link))?;
    Ok(if program.exists() { program } else { link })
}

/// The log of what runs in the background, for its owner alone.
pub(super) fn open_log(paths: &Paths) -> Result<File, DaemonError> {
    let path = paths.log();
    if let Some(dir) = path.parent() {
        make_private_dirs(dir)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(&path).map_err(DaemonError::io("open", &path))
}

fn start(mut command: Command, paths: &Paths, deadline: Instant) -> Result<(), DaemonError> {
    let program = PathBuf::from(command.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // Wherever the command was called: the directory is not held.
    command.current_dir("/");
    let mut child = command.spawn().map_err(DaemonError::io("start", &program))?;
    let log = paths.log();
    match report(&mut child, deadline) {
        Ok(Some(report)) if report == READY => Ok(()),
        Ok(Some(report)) if !report.is_empty() => {
            end(&mut child)?;
            Err(DaemonError::Start(String::from_utf8_lossy(&report).trim().to_owned()))
        }
        Ok(Some(_)) => {
            let status = end(&mut child)?;
            let log = log.display();
            Err(DaemonError::Start(format!("the daemon has ended ({status}); see {log}")))
        }
        Ok(None) => {
            end(&mut child)?;
            Err(DaemonError::StartTimeout { limit: START_WITHIN, log })
        }
        Err(error) => {
            end(&mut child)?;
            Err(DaemonError::io("read the report of", &program)(error))
        }
    }
}

/// One line from the child, or all that it wrote before it closed its output; `None` if neither came
/// in time.
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
            len => report.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
    Ok(Some(report))
}

/// Ends a child that did not get ready: asks it to clear up after itself, and if it does not, kills it.
fn end(child: &mut Child) -> Result<std::process::ExitStatus, DaemonError> {
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
    ended().map_err(DaemonError::io("end", "the daemon in the background".as_ref()))
}

/// The other side: in the process that was started.
#[derive(Debug)]
pub struct Readiness(());

impl Readiness {
    /// Leaves the terminal's session, so that closing the terminal does not end this process. Call it
    /// first, and print nothing to standard output before [`Readiness::ready`] or
    /// [`Readiness::failed`].
    pub fn new() -> Self {
        // Refused if the process leads a session already, which is as well.
        let _ = setsid();
        Self(())
    }

    /// Says that the daemon answers. From now on standard output is the log.
    pub fn ready(self) -> io::Result<()> {
        self.say(READY)
    }

    /// Says why there will be none.
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

    fn shell(script: &str, limit: Duration) -> Result<(), DaemonError> {
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
        assert!(matches!(error, DaemonError::StartTimeout { .. }), "{error}");
    }
}
