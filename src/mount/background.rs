//! A server in the background: the command line starts itself again in another process, and returns
//! when that one has mounted.
//!
//! The other process's standard output is the pipe on which it says how it went: `ready`, or the text
//! of an error. After that its standard output is its log, as standard error is from the beginning.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, setsid};
use rustix::stdio::dup2_stdout;

use super::error::MountError;
use super::registry::make_private_dirs;

const READY: &[u8] = b"ready\n";

/// How long a process that is not wanted any more may clear up after itself.
const CLEAR_UP_WITHIN: Duration = Duration::from_secs(20);

/// The longest report that is read, in bytes.
const REPORT_LEN_MAX: usize = 64 << 10;

/// Starts this program with `args` in the background and waits at most `limit` until it says, with
/// [`Readiness`], that it is ready. Returns its pid. What it prints goes to the end of `log`. If it
/// fails or takes too long, it is gone when this returns.
pub fn spawn_background<S: AsRef<OsStr>>(
    args: impl IntoIterator<Item = S>,
    log: &Path,
    limit: Duration,
) -> Result<u32, MountError> {
    let program =
        std::env::current_exe().map_err(MountError::io("find", "/proc/self/exe".as_ref()))?;
    let mut command = Command::new(program);
    command.args(args);
    spawn(command, log, limit)
}

fn spawn(mut command: Command, log: &Path, limit: Duration) -> Result<u32, MountError> {
    if let Some(dir) = log.parent() {
        make_private_dirs(dir)?;
    }
    let failed = || MountError::io("write the log", log);
    let output = File::options().create(true).append(true).open(log).map_err(failed())?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(output);
    let program = PathBuf::from(command.get_program());
    let mut child = command.spawn().map_err(MountError::io("start", &program))?;
    let report = report(&mut child, limit);
    let pid = child.id();
    match report {
        Ok(Some(report)) if report == READY => Ok(pid),
        Ok(Some(report)) if !report.is_empty() => {
            end(&mut child)?;
            Err(MountError::Background(String::from_utf8_lossy(&report).trim().to_owned()))
        }
        Ok(Some(_)) => {
            let status = end(&mut child)?;
            let log = log.display();
            Err(MountError::Background(format!(
                "the process that was to serve the mount has ended ({status}); see {log}"
            )))
        }
        Ok(None) => {
            end(&mut child)?;
            Err(MountError::BackgroundTimeout { limit, log: log.to_owned() })
        }
        Err(error) => {
            end(&mut child)?;
            Err(MountError::io("read the report of", &program)(error))
        }
    }
}

/// One line from the child, or all that it wrote before it closed its output; `None` if neither came
/// in time.
fn report(child: &mut Child, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    let Some(mut pipe) = child.stdout.take() else { return Ok(None) };
    let deadline = Instant::now() + limit;
    let mut report = Vec::new();
    let mut piece = [0; 4096];
    while !report.ends_with(b"\n") && report.len() < REPORT_LEN_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pipe.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
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
fn end(child: &mut Child) -> Result<ExitStatus, MountError> {
    let mut ended = || -> io::Result<ExitStatus> {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let pid = Pid::from_child(child);
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        kill_process(pid, Signal::TERM)?;
        let limit = Timespec::try_from(CLEAR_UP_WITHIN).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit))? == 0 {
            child.kill()?;
        }
        child.wait()
    };
    ended().map_err(MountError::io("end", "the process in the background".as_ref()))
}

/// The other side: in the process that was started.
#[derive(Debug)]
pub struct Readiness(());

impl Readiness {
    /// Leaves the terminal's session, so that closing the terminal does not end this process. Call it
    /// first, and print nothing to standard output before [`Readiness::ready`] or
    /// [`Readiness::failed`].
    pub fn new() -> io::Result<Self> {
        setsid()?;
        Ok(Self(()))
    }

    /// Says that the mount is there. From now on standard output is the log.
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

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn shell(script: &str, log: &Path, limit: Duration) -> Result<u32, MountError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        spawn(command, log, limit)
    }

    #[test]
    fn the_caller_goes_on_when_the_process_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log/mount.log");
        shell("echo printed >&2; echo ready", &log, LONG).unwrap();
        assert_eq!(std::fs::read_to_string(log).unwrap(), "printed\n");
    }

    #[test]
    fn an_error_of_the_process_is_the_callers_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = shell("echo 'no such snapshot'; exec sleep 1000", &log, LONG).unwrap_err();
        assert_eq!(error.to_string(), "no such snapshot");
        let error = shell("exit 3", &log, LONG).unwrap_err().to_string();
        assert!(error.contains("log"), "{error}");
    }

    #[test]
    fn a_process_that_does_not_get_ready_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = shell("exec sleep 1000", &log, Duration::from_millis(1)).unwrap_err();
        assert!(matches!(error, MountError::BackgroundTimeout { .. }), "{error}");
    }
}
