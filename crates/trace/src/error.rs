//! Defines the errors of reading a trace.

use std::path::PathBuf;

/// The reason a trace is unusable.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is longer than any trace.
    #[error("{}: it is longer than {max} bytes, which no trace is", path.display())]
    TooLong {
        /// Path of the file.
        path: PathBuf,
        /// Maximum size, in bytes.
        max: u64,
    },
    /// Not JSON, or not of the expected shape.
    #[error(
        "it is no trace that can be read: {0}; `inlay trace run` and `inlay trace record` write them"
    )]
    Shape(#[from] serde_json::Error),
    /// JSON of another format.
    #[error("it is no trace: its format is {0:?}, not \"inlay-trace\"")]
    Format(String),
    /// Written by a newer version.
    #[error("it is a trace of version {0}, and this inlay reads version 1; take a newer inlay")]
    Version(u64),
    /// The contents are inconsistent.
    #[error("the trace contradicts itself: {0}")]
    Wrong(String),
}
