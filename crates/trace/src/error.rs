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
    #[error("{}: longer than {max} bytes, the limit of a trace", path.display())]
    TooLong {
        /// Path of the file.
        path: PathBuf,
        /// Maximum size, in bytes.
        max: u64,
    },
    /// Not JSON, or not of the expected shape.
    #[error("not a valid trace: {0}; `inlay trace run` and `inlay trace record` write them")]
    Shape(#[from] serde_json::Error),
    /// JSON of another format.
    #[error("not a trace: its format is {0:?}, not \"inlay-trace\"")]
    Format(String),
    /// Written by a newer version.
    #[error("trace version {0} is not supported, only version 1; use a newer inlay")]
    Version(u64),
    /// The contents are inconsistent.
    #[error("the trace contradicts itself: {0}")]
    Wrong(String),
}
