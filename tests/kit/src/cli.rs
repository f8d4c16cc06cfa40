//! Runs the built `inlay` with a state of its own.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use tempfile::TempDir;

use crate::scratch::scratch;

/// A command line with a state directory that nobody else uses.
#[derive(Debug)]
pub struct Inlay {
    program: PathBuf,
    state: TempDir,
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

impl Inlay {
    /// `program` is the built binary: `env!("CARGO_BIN_EXE_inlay")` in a test of the package.
    pub fn new(program: &str) -> io::Result<Self> {
        Ok(Self { program: program.into(), state: scratch()?, environment: Vec::new() })
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
        self.state.path()
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
            .env("INLAY_STATE", self.state.path())
            // Neither the caller's credentials nor what a run might leave behind.
            .env("HOME", self.state.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end, whatever the end is.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> io::Result<Ran> {
        let arguments: Vec<OsString> =
            arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        let output = self.command().args(&arguments).output()?;
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
