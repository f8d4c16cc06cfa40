//! Runs external programs with captured output and a deadline, and kills them when dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::error::BenchError;
use super::interrupt::Interrupt;

/// Upper bound on the delay before an interrupt is noticed.
const SLICE: Duration = Duration::from_millis(100);
/// Maximum bytes of program output quoted in an error message.
const SHOWN_MAX: usize = 2000;
/// Default deadline of a program.
const LIMIT_DEFAULT: Duration = Duration::from_mins(10);

/// A program to be run, without the store-related environment variables of this process.
pub(super) struct Program {
    command: Command,
    shown: String,
    limit: Duration,
}

/// Exit status and captured output of a program.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Program {
    pub(super) fn new(program: impl AsRef<OsStr>, words: &[&str]) -> Self {
        let mut command = Command::new(&program);
        command.args(words).process_group(0).stdin(Stdio::null());
        command.env_clear().envs(inlay_base::programs::unrelated_variables());
        let name = Path::new(program.as_ref()).file_name().unwrap_or_default().to_string_lossy();
        let mut shown = name.into_owned();
        for word in words {
            shown.push(' ');
            shown.push_str(word);
        }
        Self { command, shown: shortened(&shown, 200), limit: LIMIT_DEFAULT }
    }

    pub(super) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub(super) fn variables<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.command.envs(variables);
        self
    }

    /// Spawns the program after `output` has set up its standard streams.
    pub(super) fn spawn(
        mut self,
        output: impl FnOnce(&mut Command),
    ) -> Result<Running, BenchError> {
        output(&mut self.command);
        let child = self.command.spawn().map_err(|error| failed(&self.shown, &error))?;
        Ok(Running { child, shown: self.shown, ended: None })
    }

    /// Runs the program to completion. Returns its output regardless of its exit status.
    pub(super) fn run(self, interrupt: &Interrupt) -> Result<Said, BenchError> {
        let (limit, shown) = (self.limit, self.shown.clone());
        // Files rather than pipes: they hold any amount of output, and a grandchild that inherits
        // them does not delay the read.
        let file = || tempfile::tempfile().map_err(|error| failed(&shown, &error));
        let mut files = [file()?, file()?];
        let copy = |file: &File| file.try_clone().map_err(|error| failed(&shown, &error));
        let outputs = [copy(&files[0])?, copy(&files[1])?];
        let mut running = self.spawn(|command| {
            let [out, err] = outputs;
            command.stdout(out).stderr(err);
        })?;
        let status = running.wait(limit, interrupt)?;
        let mut read = files.iter_mut().map(|file| -> io::Result<Vec<u8>> {
            file.rewind()?;
            let mut bytes = Vec::new();
            file.take(16 << 20).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let mut next =
            || read.next().unwrap_or(Ok(Vec::new())).map_err(|error| failed(&shown, &error));
        Ok(Said { status, stdout: next()?, stderr: next()? })
    }

    /// Runs the program and returns its standard output. Fails if the exit status is not zero.
    pub(super) fn output(self, interrupt: &Interrupt) -> Result<Vec<u8>, BenchError> {
        let shown = self.shown.clone();
        let said = self.run(interrupt)?;
        if said.status.success() {
            return Ok(said.stdout);
        }
        Err(BenchError::Program { program: shown, why: said.reason() })
    }

    /// Runs the program and parses its standard output as JSON.
    pub(super) fn json<T: serde::de::DeserializeOwned>(
        self,
        interrupt: &Interrupt,
    ) -> Result<T, BenchError> {
        let shown = self.shown.clone();
        let printed = self.output(interrupt)?;
        serde_json::from_slice(&printed).map_err(|error| BenchError::Program {
            program: shown,
            why: format!("it prints something else than was expected: {error}"),
        })
    }
}

impl Said {
    /// Returns the tail of stderr, else of stdout, else the exit status.
    pub(super) fn reason(&self) -> String {
        let said = tail(&self.stderr);
        let said = if said.is_empty() { tail(&self.stdout) } else { said };
        if said.is_empty() { self.status.to_string() } else { said }
    }
}

/// A running program. Drop kills its process group, i.e., the program and all descendants that have
/// not changed their group.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) child: Child,
    shown: String,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Blocks until the program exits. The wake-up is immediate: it polls a pidfd.
    pub(super) fn wait(
        &mut self,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<ExitStatus, BenchError> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            interrupt.check()?;
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(BenchError::Slow { program: self.shown.clone(), limit });
            }
            let pid = Pid::from_child(&self.child);
            let ends = pidfd_open(pid, PidfdFlags::empty())
                .map_err(|error| failed(&self.shown, &error.into()))?;
            wait_readable(&[PollFd::new(&ends, PollFlags::IN)], left);
        }
    }

    /// Returns the exit status if the program has exited. Does not block.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, BenchError> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(|error| failed(&self.shown, &error))?;
        }
        Ok(self.ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_some() || matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // The group holds only this program's tree: it was spawned with `process_group(0)`.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        drop(self.child.wait());
    }
}

/// Blocks until a descriptor is ready, for at most `left` or [`SLICE`]. Returns whether one is.
pub(super) fn wait_readable(files: &[PollFd<'_>], left: Duration) -> bool {
    let mut files = files.to_vec();
    let slice = left.min(SLICE);
    let slice = Timespec { tv_sec: 0, tv_nsec: slice.subsec_nanos().into() };
    // On EINTR the caller polls again.
    matches!(poll(&mut files, Some(&slice)), Ok(1..))
}

fn failed(program: &str, error: &io::Error) -> BenchError {
    BenchError::Program { program: program.to_owned(), why: error.to_string() }
}

/// Returns the last [`SHOWN_MAX`] bytes of an output, with control characters replaced by spaces.
pub(super) fn tail(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(SHOWN_MAX);
    let end = bytes.get(from..).unwrap_or_default();
    String::from_utf8_lossy(end)
        .trim()
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most).chain(['…']).collect()
}

/// Finds a program next to this executable, else in `PATH`.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    beside.filter(|file| file.is_file()).or_else(|| inlay_base::programs::find(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_exit_status_are_captured() {
        let interrupt = Interrupt::default();
        let said =
            Program::new("/bin/sh", &["-c", "echo a; echo b >&2; exit 3"]).run(&interrupt).unwrap();
        assert_eq!((said.stdout, said.stderr), (b"a\n".to_vec(), b"b\n".to_vec()));
        assert_eq!(said.status.code(), Some(3));
        let failed = Program::new("/bin/sh", &["-c", "echo why >&2; false"]).output(&interrupt);
        assert!(failed.unwrap_err().to_string().ends_with(": why"));
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        let slow = Program::new("/bin/sleep", &["60"]).limit(Duration::from_millis(50));
        let error = slow.run(&Interrupt::default()).unwrap_err();
        assert!(matches!(error, BenchError::Slow { .. }), "{error}");
    }
}
