//! When a start counts as ready: what it prints, a port that answers, or its end.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Args;
use regex::bytes::{Regex, RegexBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::cli::error::CliError;
use crate::sandbox::FrameKind;
use crate::trace::clock;

/// The longest line that is looked at, in bytes.
const LINE_LEN_MAX: usize = 64 << 10;
/// The pause between two tries of a port.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a port may take to answer a try.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// When it is ready.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct ReadyArgs {
    /// It is ready when it prints a line in which this regular expression is found
    #[arg(long, value_name = "REGEX", value_parser = pattern)]
    ready: Option<Regex>,
    /// It is ready when something in it accepts connections at this TCP port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ready_port: Option<u16>,
    /// It is ready when it ends with exit code 0. So it is if nothing else is said
    #[arg(long)]
    ready_exit: bool,
}

/// When it is ready.
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
    /// As a trace says it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Output(pattern) => format!("output /{pattern}/"),
            Self::Port(port) => format!("port {port}"),
            Self::Exit => "exit 0".to_owned(),
        }
    }

    /// What is looked for in the output.
    pub(super) fn lines(&self) -> Lines {
        let pattern = match self {
            Self::Output(pattern) => Some(pattern.clone()),
            Self::Port(_) | Self::Exit => None,
        };
        Lines { pattern, parts: Default::default() }
    }
}

/// Looks for a pattern in the lines of two streams.
pub(super) struct Lines {
    pattern: Option<Regex>,
    /// The last lines, which may go on.
    parts: [Vec<u8>; 2],
}

impl Lines {
    /// Whether what comes now has the pattern.
    pub(super) fn take(&mut self, kind: FrameKind, bytes: &[u8]) -> bool {
        let Some(pattern) = &self.pattern else { return false };
        let [out, err] = &mut self.parts;
        let part = if kind == FrameKind::Stderr { err } else { out };
        part.extend_from_slice(bytes);
        let found = pattern.is_match(part);
        let whole = part.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        part.drain(..whole);
        if part.len() > LINE_LEN_MAX {
            part.clear();
        }
        found
    }
}

/// Tries a port of a sandbox until it answers or this is dropped.
pub(super) struct Port {
    given_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Tries it as the process `pid` would. The moment when it answered comes through the second.
    pub(super) fn watch(pid: u32, port: u16) -> Result<(Self, oneshot::Receiver<u64>), CliError> {
        let network = File::open(format!("/proc/{pid}/ns/net"))?;
        let (sender, answered) = oneshot::channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&given_up);
        let work = move || {
            let inside =
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
            if let Err(error) = inside {
                tracing::warn!(%error, "the sandbox's network can't be entered");
                return;
            }
            let hosts = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            while !until.load(Ordering::Relaxed) {
                let answers = |host| {
                    TcpStream::connect_timeout(&SocketAddr::new(host, port), CONNECT_WITHIN).is_ok()
                };
                if hosts.into_iter().any(answers) {
                    // Nobody may wait any more.
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

    #[test]
    fn a_pattern_is_found_in_a_line_however_it_comes() {
        let of = |text: &str| Ready::Output(pattern(text).unwrap()).lines();
        let mut lines = of("^ready in [0-9]+ ms$");
        assert!(!lines.take(FrameKind::Stdout, b"starting\nrea"));
        assert!(!lines.take(FrameKind::Stderr, b"dy in 3 ms\n"));
        assert!(lines.take(FrameKind::Stdout, b"dy in 12 ms\nmore"));
        let mut lines = of("b");
        assert!(!lines.take(FrameKind::Stdout, &vec![b'a'; LINE_LEN_MAX + 1]));
        assert!(lines.take(FrameKind::Stderr, b"b"));
        assert!(!Ready::Exit.lines().take(FrameKind::Stdout, b"b"));
        assert!(pattern("(").is_err());
        assert!(pattern(&format!("a{{{}}}", 10_000_000)).is_err());
    }
}
