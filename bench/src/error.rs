//! Defines the errors of start-up measurements.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The reason a benchmark, or one start of it, failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BenchError {
    /// A scenario file is invalid.
    #[error("the scenario {file}: {why}", file = file.display())]
    Scenario {
        /// Path of the file.
        file: PathBuf,
        /// The defect.
        why: String,
    },
    /// The request is invalid or cannot be measured.
    #[error("{0}")]
    Request(String),
    /// A required program is missing.
    #[error("{program} is needed {why} and is not installed: {advice}")]
    Missing {
        /// Name of the program.
        program: String,
        /// Its purpose.
        why: &'static str,
        /// How to install it.
        advice: String,
    },
    /// A program failed.
    #[error("{program}: {why}")]
    Program {
        /// Command line, shortened.
        program: String,
        /// Tail of its output, or its exit status.
        why: String,
    },
    /// A program exceeded its deadline.
    #[error("{program} did not finish within {limit:?}", limit = limit)]
    Slow {
        /// Command line, shortened.
        program: String,
        /// The deadline.
        limit: Duration,
    },
    /// A scenario's command exited before it was ready.
    #[error("the command {how} before it was ready{}", printed_output(output))]
    Ended {
        /// Exit status, as text.
        how: String,
        /// Tail of its output.
        output: String,
    },
    /// A scenario's command was not ready before the deadline.
    #[error("the command was not ready after {limit:?}{}", printed_output(output))]
    NotReady {
        /// The deadline.
        limit: Duration,
        /// Tail of its output.
        output: String,
    },
    /// An operation on a file, directory or mount failed.
    #[error("cannot {what} {path}: {why}", path = path.display())]
    Path {
        /// The operation.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The error of the system.
        why: String,
    },
    /// A signal requested the end of the benchmark.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// Returns a closure for `map_err` that adds the operation and its path.
    pub fn path(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Path { what, path: path.to_owned(), why: error.to_string() }
    }
}

fn printed_output(output: &str) -> String {
    let output = output.trim();
    if output.is_empty() { String::new() } else { format!("; it said: {output}") }
}
