//! Starts a sandbox's monitor, and buries it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::client::Monitor;
use super::error::SandboxError;
use super::layout::Layout;
use super::protocol::{Failure, LINE_LEN_MAX};

/// How long a monitor may take until its container is there: more than it gives the runtime.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// Monitors that this process has started and that may have ended. They are meant to outlive it, so
/// nobody waits for them: who has ended is buried at the next occasion.
static STARTED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// What a monitor says first on its standard output: one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Report {
    /// The container is there.
    Ready,
    /// It is not, and nothing of it is left.
    Failed(Failure),
}

/// Buries monitors that this process has started and that have ended. Does not wait.
pub fn reap_monitors() {
    STARTED.lock().retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
}

pub(super) fn spawn(
    layout: &Layout,
    program: &Path,
    words: &[OsString],
) -> Result<Monitor, SandboxError> {
    reap_monitors();
    let monitor = Monitor::of(layout);
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(open_log(layout)?);
    // What is said to this process's group is not for the monitor.
    command.process_group(0).current_dir("/");
    let mut child = command.spawn().map_err(SandboxError::io("start", program))?;
    let report = match child.stdout.take() {
        Some(pipe) => read_report(pipe),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    match report {
        Ok(Report::Ready) => {
            STARTED.lock().push(child);
            Ok(monitor)
        }
        Ok(Report::Failed(failure)) => {
            child.wait().map_err(SandboxError::io("wait for", program))?;
            Err(monitor.refused(failure))
        }
        Err(error) => {
            // It may still be at work: then it is ended, and `remove` clears up after it.
            child.kill().map_err(SandboxError::io("end", program))?;
            let status = child.wait().map_err(SandboxError::io("wait for", program))?;
            Err(monitor.monitor_error(format!("it does not get ready ({error}, {status})")))
        }
    }
}

/// The program that runs, by a path that can be run again: another process may have replaced the
/// file in the meantime.
pub(super) fn own_program() -> Result<PathBuf, SandboxError> {
    let link = PathBuf::from("/proc/self/exe");
    let program = fs::read_link(&link).map_err(SandboxError::io("read", &link))?;
    Ok(if program.exists() { program } else { link })
}

fn open_log(layout: &Layout) -> Result<File, SandboxError> {
    let path = layout.monitor_log();
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(&path).map_err(SandboxError::io("open", &path))
}

fn read_report(mut pipe: ChildStdout) -> io::Result<Report> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while !line.ends_with(b"\n") && line.len() < LINE_LEN_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match pipe.read(&mut piece)? {
            0 => break,
            len => line.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
    if line.is_empty() {
        return Err(io::Error::other("it has said nothing"));
    }
    Ok(serde_json::from_slice(&line)?)
}
