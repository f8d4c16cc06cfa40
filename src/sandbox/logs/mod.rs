//! The output of a sandbox's first process: one line of JSON for each line, bounded and rotated.
//!
//! `{"time_ns": 1700000000123456789, "stream": "stdout", "text": "a line\n"}`; what is not UTF-8 is
//! `"base64"` instead of `"text"`. A line of more than 16 KiB is several entries, of which only the
//! last ends with a line end.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

pub use reader::{LogFrom, LogReader, Waited};
pub(super) use writer::LogWriter;

use super::layout::Layout;

/// The longest line that is one entry, in bytes.
pub(super) const LINE_MAX: usize = 16 << 10;
/// The longest entry, in bytes: every byte escaped as `\u00xx`, and what is around it.
const ENTRY_MAX: usize = 6 * LINE_MAX + 256;

/// Where a process has written something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    /// What it prints; with a terminal, all.
    Stdout,
    /// What it says besides.
    Stderr,
}

/// Something that the first process has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When it was read from the process, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Where it was written.
    pub stream: LogStream,
    /// What.
    #[serde(flatten)]
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Content {
    Text(String),
    Base64(String),
}

impl LogEntry {
    fn new(time_ns: u64, stream: LogStream, bytes: &[u8]) -> Self {
        let content = match std::str::from_utf8(bytes) {
            Ok(text) => Content::Text(text.to_owned()),
            Err(_) => Content::Base64(STANDARD.encode(bytes)),
        };
        Self { time_ns, stream, content }
    }

    /// What was written, its line end included.
    pub fn bytes(&self) -> Vec<u8> {
        match &self.content {
            Content::Text(text) => text.clone().into_bytes(),
            Content::Base64(text) => STANDARD.decode(text).unwrap_or_default(),
        }
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogLimits {
    /// The length of a file from which on the next is begun, in bytes.
    pub(super) file: u64,
    /// How many files there are at most.
    pub(super) files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { file: 10 << 20, files: 3 }
    }
}

/// The file that is `age` rotations old.
fn path(layout: &Layout, age: u32) -> PathBuf {
    match age {
        0 => layout.log().join("output.json"),
        age => layout.log().join(format!("output.{age}.json")),
    }
}
