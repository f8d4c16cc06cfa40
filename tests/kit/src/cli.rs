//! Runs the built `inlay` with a state of its own.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tempfile::TempDir;

use crate::leftover;
use crate::output::output;
use crate::scratch::scratch;

/// How long a daemon may take to end that nothing keeps. Generous: nothing waits for it when all is
/// well.
const QUIET_WITHIN: Duration = Duration::from_mins(1);

/// How long a run may take. Generous: some import an image over a slow link on a busy machine.
pub const RUN_WITHIN: Duration = Duration::from_mins(10);

/// A command line with a state directory that nobody else uses. Dropping it ends the daemon of that
/// state, and whatever of it is left.
#[derive(Debug)]
pub struct Inlay {
    program: PathBuf,
    state: PathBuf,
    // Dropped last.
    _dir: TempDir,
    environment: Vec<(OsString, OsString)>,
}

/// What a run printed and how it ended.
#[derive(Clone)]
pub struct Ran {
    /// The arguments, for messages.
    pub arguments: Vec<OsString>,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: String,
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let arguments = &self.arguments;
        write!(f, "inlay {arguments:?}: {}\n{stdout}\n{}", self.status, self.stderr)
    }
}

impl Ran {
    /// What it printed, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Drop for Inlay {
    fn drop(&mut self) {
        // A test may have removed the state, or failed: what must not happen is that something stays.
        for _ in 0..3 {
            match leftover::of(&self.state) {
                Ok(left) if !left.is_nothing() => left.end(),
                _ => return,
            }
        }
    }
}

impl Inlay {
    /// `program` is the built binary: `env!("CARGO_BIN_EXE_inlay")` in a test of the package.
    pub fn new(program: &str) -> io::Result<Self> {
        let dir = scratch()?;
        let state = dir.path().to_owned();
        Ok(Self::with_state(program, dir, state))
    }

    /// With `state`, which is somewhere in `dir`.
    pub fn with_state(program: &str, dir: TempDir, state: PathBuf) -> Self {
        Self { program: program.into(), state, _dir: dir, environment: Vec::new() }
    }

    /// Sets variables for all runs.
    #[must_use]
    pub fn with_environment<K, V>(mut self, variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        self.environment.extend(variables);
        self
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A command with the state, and without what the caller's environment would change.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("INLAY_") || text.starts_with("AWS_") {
                command.env_remove(&name);
            }
        }
        command
            .env("INLAY_STATE", &self.state)
            // Daemons that commands start go with the last mount.
            // Tests count requests: what is loaded ahead they ask for.
            .env("INLAY_PREFETCH", "off")
            .env("INLAY_RECORD_PROFILE", "off")
            .env("INLAY_IDLE_EXIT", "0")
            // Neither the caller's credentials nor what a run might leave behind.
            .env("HOME", &self.state)
            // Whole suites can be run as on an older kernel.
            .envs(std::env::var_os("INLAY_TEST_WITHOUT").map(|list| ("INLAY_WITHOUT", list)))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// How the daemon is; an error if there is none.
    pub fn daemon_status(&self) -> io::Result<serde_json::Value> {
        let ran = self.succeed(["daemon", "status", "--json"])?;
        Ok(serde_json::from_slice(&ran.stdout)?)
    }

    /// How the next daemon is, when it answers.
    pub fn wait_for_daemon(&self) -> io::Result<serde_json::Value> {
        let deadline = Instant::now() + QUIET_WITHIN;
        loop {
            match self.daemon_status() {
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                other => return other,
            }
        }
    }

    /// The daemon's process and its keeper's; if there is none at this moment, those of the next.
    pub fn daemon_pids(&self) -> io::Result<(Pid, Pid)> {
        let status = self.wait_for_daemon()?;
        let pid = |place: &str| {
            let pid = status.pointer(place).and_then(serde_json::Value::as_i64);
            let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            pid.ok_or_else(|| io::Error::other(format!("no {place} in {status}")))
        };
        Ok((pid("/server/pid")?, pid("/keeper")?))
    }

    /// What daemons in the background have logged.
    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.state().join("log/daemon.log")).unwrap_or_default()
    }

    /// Waits until no process works for this state and nothing of it is mounted, as it is soon after
    /// the last mount is gone.
    pub fn wait_until_quiet(&self) -> io::Result<()> {
        let deadline = Instant::now() + QUIET_WITHIN;
        loop {
            let left = leftover::of(self.state())?;
            if left.is_nothing() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let log = self.daemon_log();
                return Err(io::Error::other(format!("still there: {left:?}\n{log}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs to the end, whatever the end is. A run that does not end is an error with its output so far.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> io::Result<Ran> {
        let arguments: Vec<OsString> =
            arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        let output = output(self.command().args(&arguments), RUN_WITHIN)?;
        Ok(Ran {
            arguments,
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs and gives what was printed; a run that fails is an error with what it said.
    pub fn succeed<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<Ran> {
        let ran = self.run(arguments)?;
        if ran.status.success() { Ok(ran) } else { Err(io::Error::other(format!("{ran:?}"))) }
    }

    /// Runs and expects a failure that is reported: an exit status, not a signal.
    pub fn fail<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> io::Result<Ran> {
        let ran = self.run(arguments)?;
        match ran.status.code() {
            Some(code) if code != 0 => Ok(ran),
            _ => Err(io::Error::other(format!("this should have failed: {ran:?}"))),
        }
    }
}
