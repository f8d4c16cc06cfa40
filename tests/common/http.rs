//! Speaks to a daemon as any client may: HTTP over its socket, with headers of the caller's choice.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_mins(5);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names and values, one a line, in lower case.
    pub(crate) headers: String,
    pub(crate) body: Value,
}

/// A request that was sent. Dropping it is what a caller does that gives up.
pub(crate) struct Asked(UnixStream);

/// Sends a request. Headers are pairs of a name and a value.
pub(crate) fn send(
    state: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> io::Result<Asked> {
    let mut stream = UnixStream::connect(state.join("run/daemon.sock"))?;
    // Longer than any request takes that a test makes: one that hangs is an error.
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let headers = headers.concat();
    // In one piece: some requests are answered before their bodies are read.
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: inlay\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    Ok(Asked(stream))
}

impl Asked {
    /// Waits for the answer, which is JSON. One that breaks off is an error.
    pub(crate) fn answer(self) -> io::Result<Answer> {
        let (status, headers, body) = self.read()?;
        Ok(Answer { status, headers, body: serde_json::from_str(&body)? })
    }

    /// Waits for the answer, whatever it holds: its status and its head, in lower case.
    pub(crate) fn head(self) -> io::Result<(u16, String)> {
        self.read().map(|(status, head, _)| (status, head))
    }

    fn read(mut self) -> io::Result<(u16, String, String)> {
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        let broken = || io::Error::other(format!("no answer: {text:?}"));
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or_else(broken)?, head.to_lowercase(), body.to_owned()))
    }
}
