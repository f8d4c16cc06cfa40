//! Detects when a start is ready: by its output, by an open port, or by its exit.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Args;
use inlay_sandbox::FrameKind;
use inlay_trace::clock;
use regex::bytes::{Regex, RegexBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::cli::error::CliError;

/// Maximum length of a matched line, in bytes.
const LINE_LEN_MAX: usize = 64 << 10;
/// An incomplete line counts as a line if nothing follows it within this time.
const QUIET: Duration = Duration::from_millis(200);
/// Pause between connection attempts.
const PAUSE: Duration = Duration::from_millis(1);
/// Timeout of a connection attempt.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// Readiness condition, from the command line.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct ReadyArgs {
    /// Ready when an output line matches this regular expression. A line without its end, such as a
    /// prompt, counts after a pause
    #[arg(long, value_name = "REGEX", value_parser = pattern)]
    ready: Option<Regex>,
    /// Ready when this TCP port accepts connections inside the sandbox
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ready_port: Option<u16>,
    /// Ready when the command exits with code 0 (the default)
    #[arg(long)]
    ready_exit: bool,
}

/// Readiness condition.
#[derive(Debug, Clone)]
pub(super) enum Ready {
    Output(Regex),
    Port(u16),
    Exit,
}

fn pattern(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).multi_line(true).size_limit(1 << 20).build();
    built.map_err(|error| error.to_string())
}

impl ReadyArgs {
    pub(super) fn ready(&self) -> Ready {
        match (&self.ready, self.ready_port) {
            (Some(pattern), _) => Ready::Output(pattern.clone()),
            (None, Some(port)) => Ready::Port(port),
            (None, None) => Ready::Exit,
        }
    }
}

impl Ready {
    /// Formats the condition for a trace.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Output(pattern) => format!("output /{pattern}/"),
            Self::Port(port) => format!("port {port}"),
            Self::Exit => "exit 0".to_owned(),
        }
    }

    /// Returns the matcher for the output; it matches nothing for other conditions.
    pub(super) fn lines(&self) -> Lines {
        let pattern = match self {
            Self::Output(pattern) => Some(pattern.clone()),
            Self::Port(_) | Self::Exit => None,
        };
        Lines { pattern, parts: Default::default() }
    }
}

/// Matches a pattern in the lines of standard output and standard error.
pub(super) struct Lines {
    pattern: Option<Regex>,
    /// Incomplete last lines of the two streams.
    parts: [Part; 2],
}

/// The incomplete last line of a stream.
#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    /// Since when the bytes match, and when they count as a line if nothing follows. The time is
    /// that of the trace's clock, in nanoseconds.
    matches: Option<(u64, Instant)>,
}

impl Lines {
    /// Consumes output that arrived at `now_ns`. If a complete line matches, returns since when.
    pub(super) fn take(&mut self, kind: FrameKind, bytes: &[u8], now_ns: u64) -> Option<u64> {
        let pattern = self.pattern.as_ref()?;
        let [out, err] = &mut self.parts;
        let part = if kind == FrameKind::Stderr { err } else { out };
        part.take(pattern, bytes, now_ns)
    }

    /// Returns when an incomplete line that matches counts as a line.
    pub(super) fn due(&self) -> Option<Instant> {
        self.parts.iter().filter_map(|part| part.matches).map(|(_, due)| due).min()
    }

    /// Treats incomplete lines as complete, after [`Self::due`] or at the end of the output. If one
    /// matches, returns since when.
    pub(super) fn rest(&self) -> Option<u64> {
        self.parts.iter().filter_map(|part| part.matches).map(|(since, _)| since).min()
    }
}

impl Part {
    fn take(&mut self, pattern: &Regex, bytes: &[u8], now_ns: u64) -> Option<u64> {
        let mut since = self.matches.take().map_or(now_ns, |(since, _)| since);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            self.bytes.extend_from_slice(line);
            let found = pattern.is_match(&self.bytes);
            self.bytes.clear();
            if found {
                return Some(since);
            }
            rest = after.get(1..).unwrap_or_default();
            since = now_ns;
        }
        self.bytes.extend_from_slice(rest);
        if !self.bytes.is_empty() && pattern.is_match(&self.bytes) {
            self.matches = Some((since, Instant::now() + QUIET));
        }
        if self.bytes.len() > LINE_LEN_MAX {
            self.bytes.clear();
            return self.matches.take().map(|(since, _)| since);
        }
        None
    }
}

/// Tries to connect to a port of a sandbox until it succeeds or is dropped. Drop joins the thread.
pub(super) struct Port {
    given_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Starts connecting in the network namespace of `pid`. The receiver gets the time of success.
    pub(super) fn watch(pid: u32, port: u16) -> Result<(Self, oneshot::Receiver<u64>), CliError> {
        let network = File::open(format!("/proc/{pid}/ns/net"))?;
        let (sender, answered) = oneshot::channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&given_up);
        let work = move || {
            let inside =
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
            if let Err(error) = inside {
                tracing::warn!(%error, "can't enter the sandbox's network namespace");
                return;
            }
            let hosts = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            while !until.load(Ordering::Relaxed) {
                let answers = |host| {
                    TcpStream::connect_timeout(&SocketAddr::new(host, port), CONNECT_WITHIN).is_ok()
                };
                if hosts.into_iter().any(answers) {
                    // Best effort: the receiver may be dropped.
                    let _ = sender.send(clock::now());
                    return;
                }
                thread::sleep(PAUSE);
            }
        };
        let thread = thread::Builder::new().name("inlay-port".into()).spawn(work)?;
        Ok((Self { given_up, thread: Some(thread) }, answered))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines {
        Ready::Output(pattern(text).unwrap()).lines()
    }

    #[test]
    fn a_pattern_is_found_in_a_line_however_it_comes() {
        let mut of = lines("^ready in [0-9]+ ms$");
        assert_eq!(of.take(FrameKind::Stdout, b"starting\nrea", 1), None);
        assert_eq!(of.take(FrameKind::Stderr, b"dy in 3 ms\n", 2), None);
        assert_eq!(of.take(FrameKind::Stdout, b"dy in 12 ms\nmore", 3), Some(3));
        let mut of = lines("b");
        assert_eq!(of.take(FrameKind::Stdout, &vec![b'a'; LINE_LEN_MAX + 1], 1), None);
        assert_eq!(of.take(FrameKind::Stderr, b"b\n", 2), Some(2));
        assert_eq!(of.take(FrameKind::Stdout, &vec![b'b'; LINE_LEN_MAX + 1], 3), Some(3));
        assert_eq!(Ready::Exit.lines().take(FrameKind::Stdout, b"b\n", 1), None);
        assert!(pattern("(").is_err());
        assert!(pattern(&format!("a{{{}}}", 10_000_000)).is_err());
    }

    #[test]
    fn the_beginning_of_a_line_is_not_the_line() {
        let mut of = lines("^done$");
        assert_eq!(of.take(FrameKind::Stdout, b"done", 1), None);
        assert!(of.due().is_some());
        assert_eq!(of.take(FrameKind::Stdout, b"-not\n", 2), None);
        assert_eq!((of.due(), of.rest()), (None, None));
        assert_eq!(of.take(FrameKind::Stdout, b"done", 3), None);
        assert_eq!(of.take(FrameKind::Stdout, b"-not\ndone\n", 4), Some(4));
        // The match began when its bytes arrived, not with the end of the line.
        assert_eq!(of.take(FrameKind::Stdout, b"done", 5), None);
        assert_eq!(of.take(FrameKind::Stdout, b"\n", 6), Some(5));
        // There is no line behind the last line end.
        assert_eq!(lines("^$").take(FrameKind::Stdout, b"a\n", 7), None);
    }

    #[test]
    fn a_prompt_without_a_line_end_counts_after_a_pause() {
        let mut of = lines("login: $");
        assert_eq!(of.take(FrameKind::Stdout, b"starting\nlogin: ", 1), None);
        assert!(of.due().unwrap() <= Instant::now() + QUIET);
        assert_eq!(of.rest(), Some(1));
        assert_eq!(lines("^$").rest(), None);
    }
}
