//! What can go wrong when start-ups are measured.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a benchmark, or one start of it, failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BenchError {
    /// A scenario's file is not what it should be.
    #[error("the scenario {file}: {why}", file = file.display())]
    Scenario {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What was asked for can't be measured.
    #[error("{0}")]
    Request(String),
    /// A program that is needed is not there.
    #[error("{program} is needed {why}, and is not there: {advice}")]
    Missing {
        /// Which.
        program: String,
        /// What for.
        why: &'static str,
        /// How to get it.
        advice: String,
    },
    /// A program failed.
    #[error("{program}: {why}")]
    Program {
        /// With its arguments, shortened.
        program: String,
        /// What it said, or how it ended.
        why: String,
    },
    /// A program took too long.
    #[error("{program} is not done after {limit:?}", limit = limit)]
    Slow {
        /// With its arguments, shortened.
        program: String,
        /// How long it had.
        limit: Duration,
    },
    /// The command of a scenario ended before it was ready.
    #[error("the command {how} before it was ready{}", said(output))]
    Ended {
        /// How it ended.
        how: String,
        /// The end of what it said.
        output: String,
    },
    /// The command of a scenario was not ready in time.
    #[error("the command was not ready after {limit:?}{}", said(output))]
    NotReady {
        /// How long it had.
        limit: Duration,
        /// The end of what it said.
        output: String,
    },
    /// A file, directory or mount.
    #[error("cannot {what} {path}: {why}", path = path.display())]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The user or the system wants this to end.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// For `map_err`: what was tried, on which path.
    pub(crate) fn path(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Path { what, path: path.to_owned(), why: error.to_string() }
    }
}

fn said(output: &str) -> String {
    let output = output.trim();
    if output.is_empty() { String::new() } else { format!("; it said: {output}") }
}
