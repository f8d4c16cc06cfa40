//! A daemon that is scraped, and which of its metrics have moved.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inlay_testkit::cli::Inlay;
use inlayfs::daemon::METRICS;
use rustix::process::{Pid, Signal, kill_process};

/// Generous: nothing waits for it when all is well.
const WITHIN: Duration = Duration::from_mins(2);

/// A daemon in the foreground, and all that was scraped from it. It ends with this.
pub(crate) struct Watch<'a> {
    inlay: &'a Inlay,
    daemon: Child,
    last: BTreeMap<String, f64>,
    moved: BTreeSet<String>,
}

impl<'a> Watch<'a> {
    /// Starts a daemon and scrapes it.
    pub(crate) fn start(inlay: &'a Inlay, options: &[&str]) -> Self {
        let mut command = inlay.command();
        command.args(["daemon", "--state"]).arg(inlay.state()).args(options);
        let daemon = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        inlay.wait_for_daemon().unwrap();
        let mut watch = Self { inlay, daemon, last: BTreeMap::new(), moved: BTreeSet::new() };
        watch.last = series(&watch.text());
        watch
    }

    /// What `/metrics` on the daemon's socket says.
    pub(crate) fn text(&self) -> String {
        let socket = UnixStream::connect(self.inlay.state().join("run/daemon.sock")).unwrap();
        let (status, body) = get(socket, "GET", "/metrics");
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Scrapes, and notes what is not as it was.
    pub(crate) fn scrape(&mut self) {
        let now = series(&self.text());
        for (name, value) in &now {
            let before = self.last.get(name).copied().unwrap_or(0.0);
            if before.to_bits() != value.to_bits() {
                self.moved.insert(family(name).to_owned());
            }
        }
        self.last = now;
    }

    /// The sum of all series of a metric at the last scrape.
    pub(crate) fn sum(&self, metric: &str) -> f64 {
        let of = self.last.iter().filter(|(name, _)| family(name) == metric);
        of.map(|(_, value)| value).sum()
    }

    /// Scrapes until `done` says that what it looks for is there.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + WITHIN;
        loop {
            self.scrape();
            if done(self) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: not within {WITHIN:?}\n{}", self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Scrapes until a metric has a value above `above`.
    pub(crate) fn until_above(&mut self, metric: &str, above: f64) {
        self.until(metric, |watch| watch.sum(metric) > above);
    }

    /// Waits for a daemon that another one replaces.
    pub(crate) fn wait_for_end(mut self) {
        assert!(self.daemon.wait().unwrap().success());
    }

    /// Ends the daemon, on which nothing may be mounted. What has moved?
    pub(crate) fn end(mut self) -> BTreeSet<String> {
        // With something attached, it would leave that to the next daemon.
        self.until("all is let go", |watch| watch.sum("inlay_attached_snapshots") == 0.0);
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).unwrap();
        assert!(self.daemon.wait().unwrap().success());
        self.inlay.wait_until_quiet().unwrap();
        std::mem::take(&mut self.moved)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Asks at a TCP address.
pub(crate) fn get_tcp(address: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    TcpStream::connect(address).ok().map(|stream| get(stream, method, path))
}

fn get(mut stream: impl Read + Write, method: &str, path: &str) -> (u16, String) {
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: inlay\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 200 {
        assert!(head.to_ascii_lowercase().contains("content-type: text/plain; version=0.0.4"));
    }
    (status, body.to_owned())
}

/// Each series with its labels, and its value.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let known = METRICS.iter().any(|metric| metric.name == family(name));
            assert!(known, "{name} is not in the table");
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The metric that a series is of.
fn family(series: &str) -> &str {
    let name = series.split('{').next().unwrap();
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
        let name = name.strip_suffix(end)?;
        METRICS.iter().any(|metric| metric.name == name).then_some(name)
    });
    of_histogram.unwrap_or(name)
}
