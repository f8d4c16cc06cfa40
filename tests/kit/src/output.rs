//! Runs a command to its end, with a deadline.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What a pipe has given so far.
struct Reading {
    bytes: Arc<Mutex<Vec<u8>>>,
    end: Receiver<io::Result<()>>,
}

impl Reading {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (sender, end) = channel();
        let into = Arc::clone(&bytes);
        // Not joined: another process may keep the pipe open for ever.
        thread::spawn(move || sender.send(read(pipe, &into)));
        Self { bytes, end }
    }

    /// Waits until nobody writes any more. `false`: somebody still may.
    fn is_over(&self, deadline: Instant) -> io::Result<bool> {
        match self.end.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(outcome) => outcome.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    fn so_far(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock())
    }
}

fn read(mut pipe: impl Read, into: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    loop {
        match pipe.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => into.lock().extend(piece.iter().take(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Runs `command` and collects its output. One that has not ended after `within` is killed, and the error
/// has its output so far; so has the error if a process that it has started keeps its output open.
pub fn output(command: &mut Command, within: Duration) -> io::Result<Output> {
    let deadline = Instant::now() + within;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("a command without pipes"));
    };
    let (stdout, stderr) = (Reading::of(stdout), Reading::of(stderr));
    let status = end(&mut child, deadline)?;
    if let Some(status) = status
        && stdout.is_over(deadline)?
        && stderr.is_over(deadline)?
    {
        return Ok(Output { status, stdout: stdout.so_far(), stderr: stderr.so_far() });
    }
    let words: Vec<&OsStr> =
        std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let what = if status.is_some() { "keeps its output open after" } else { "did not end within" };
    let [stdout, stderr] =
        [stdout, stderr].map(|pipe| String::from_utf8_lossy(&pipe.so_far()).into_owned());
    let why = format!("{words:?} {what} {within:?}:\n{stdout}\n{stderr}");
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

/// How `child` has ended; nothing if it was killed at the deadline.
fn end(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, within: Duration) -> io::Result<Output> {
        output(Command::new("sh").args(["-c", script]), within)
    }

    #[test]
    fn output_is_whole_and_the_status_is_that_of_the_command() {
        let script = "head -c 1000000 /dev/zero; echo e >&2; exit 3";
        let ran = sh(script, Duration::from_mins(1)).unwrap();
        assert_eq!((ran.stdout.len(), &*ran.stderr), (1_000_000, &b"e\n"[..]));
        assert_eq!(ran.status.code(), Some(3));
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_and_its_output_told() {
        let began = Instant::now();
        let error = sh("echo $$; echo e >&2; exec sleep 1000", Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(30));
        let text = error.to_string();
        let mut lines = text.lines().skip(1);
        let pid: u32 = lines.next().unwrap().parse().unwrap();
        assert!(lines.any(|line| line == "e"), "{text}");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn output_that_another_process_keeps_open_is_an_error() {
        let error = sh("sleep 3 & echo $!", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("keeps its output open"), "{error}");
    }
}
