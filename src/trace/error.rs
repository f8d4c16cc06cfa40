//! What can be wrong with a trace.

use std::path::PathBuf;

/// Why a trace can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is longer than any trace.
    #[error("{}: it is longer than {max} bytes, which no trace is", path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
        /// The longest that is read.
        max: u64,
    },
    /// It is not JSON, or not of this shape.
    #[error(
        "it is no trace that can be read: {0}; `inlay trace run` and `inlay trace record` write them"
    )]
    Shape(#[from] serde_json::Error),
    /// It is JSON, but of something else.
    #[error("it is no trace: its format is {0:?}, not \"inlay-trace\"")]
    Format(String),
    /// A newer one.
    #[error("it is a trace of version {0}, and this inlay reads version 1; take a newer inlay")]
    Version(u64),
    /// It contradicts itself.
    #[error("the trace contradicts itself: {0}")]
    Wrong(String),
}
