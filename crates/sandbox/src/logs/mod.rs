//! The log of a sandbox's first process: a JSON entry per output line, bounded and rotated.
//!
//! `{"time_ns": 1700000000123456789, "stream": "stdout", "text": "a line\n"}`; output that is not
//! UTF-8 has `"base64"` instead of `"text"`. A line longer than 16 KiB is split into several
//! entries, and only the last one ends with a newline.

mod mark;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

pub use mark::LogMark;
pub use reader::{LogFrom, LogReader, Waited};
pub(super) use writer::LogWriter;

use super::layout::Layout;

/// The maximum length of a line that is a single entry, in bytes.
pub(super) const LINE_MAX: usize = 16 << 10;
/// The maximum length of an entry, in bytes: every byte escaped as `\u00xx`, plus the other fields.
const ENTRY_MAX: u64 = 6 * LINE_MAX as u64 + 256;

/// The output stream of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    /// Stdout; with a terminal, all output.
    Stdout,
    /// Stderr.
    Stderr,
}

/// Output of the first process: a line or part of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When it was read from the process, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// The stream it was written to.
    pub stream: LogStream,
    /// The bytes.
    #[serde(flatten)]
    content: LogContent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LogContent {
    Text(String),
    Base64(String),
}

impl LogEntry {
    fn new(time_ns: u64, stream: LogStream, bytes: &[u8]) -> Self {
        let content = match std::str::from_utf8(bytes) {
            Ok(text) => LogContent::Text(text.to_owned()),
            Err(_) => LogContent::Base64(STANDARD.encode(bytes)),
        };
        Self { time_ns, stream, content }
    }

    /// Returns the output, including its newline.
    pub fn bytes(&self) -> Vec<u8> {
        match &self.content {
            LogContent::Text(text) => text.clone().into_bytes(),
            LogContent::Base64(text) => STANDARD.decode(text).unwrap_or_default(),
        }
    }
}

/// The limits of a log's size.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogLimits {
    /// The size at which a file is rotated, in bytes.
    pub(super) file: u64,
    /// The maximum number of files, including the current one.
    pub(super) files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { file: 10 << 20, files: 3 }
    }
}

/// Returns the path of the file after `age` rotations; 0 is the current one.
fn path(layout: &Layout, age: u32) -> PathBuf {
    match age {
        0 => layout.log().join("output.json"),
        age => layout.log().join(format!("output.{age}.json")),
    }
}
