//! What a proxy has seen: requests with their times, and sums over them.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::link::{Direction, Link};

/// A request that passed, or was to pass. Its times are counted from the start of the proxy.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method, such as `GET`.
    pub method: String,
    /// The path with the query, as sent.
    pub path: String,
    /// The header `Range`, if there was one.
    pub range: Option<String>,
    /// The status of the answer; none while there is no answer.
    pub status: Option<u16>,
    /// Bytes of the request's body that passed.
    pub up: u64,
    /// Bytes of the answer's body that passed.
    pub down: u64,
    /// When its head arrived.
    pub at: Duration,
    /// When the answer began to pass; none while there is no answer.
    pub first_byte: Option<Duration>,
    /// When the answer had passed, or was given up; none until then.
    pub end: Option<Duration>,
}

/// Sums over requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// How many there were.
    pub requests: usize,
    /// Bytes of bodies that came from the server.
    pub bytes_down: u64,
    /// Bytes of bodies that went to the server.
    pub bytes_up: u64,
    /// When the first one arrived, since the start of the proxy.
    pub first_at: Option<Duration>,
    /// When the last one arrived.
    pub last_at: Option<Duration>,
    /// When the last answer that has ended did so.
    pub last_end: Option<Duration>,
    /// How many were under way at once, at most.
    pub most_at_once: usize,
}

impl Summary {
    /// The sums over these requests.
    pub fn of(requests: &[Seen]) -> Self {
        Self {
            requests: requests.len(),
            bytes_down: requests.iter().map(|seen| seen.down).sum(),
            bytes_up: requests.iter().map(|seen| seen.up).sum(),
            first_at: requests.iter().map(|seen| seen.at).min(),
            last_at: requests.iter().map(|seen| seen.at).max(),
            last_end: requests.iter().filter_map(|seen| seen.end).max(),
            most_at_once: most_at_once(requests),
        }
    }
}

/// One that ends when another arrives is not under way at once with it.
fn most_at_once(requests: &[Seen]) -> usize {
    let mut arrivals: Vec<_> = requests.iter().map(|seen| seen.at).collect();
    let mut ends: Vec<_> = requests.iter().filter_map(|seen| seen.end).collect();
    arrivals.sort_unstable();
    ends.sort_unstable();
    let mut ended = ends.iter().peekable();
    let (mut now, mut most) = (0_usize, 0);
    for arrival in arrivals {
        now += 1;
        while ended.next_if(|end| **end <= arrival).is_some() {
            now = now.saturating_sub(1);
        }
        most = most.max(now);
    }
    most
}

/// A request under way, as it is being written down.
#[derive(Debug)]
pub(super) struct Entry {
    link: Arc<Link>,
    seen: Mutex<Seen>,
    /// When the last of the request had arrived.
    complete: Mutex<Duration>,
}

impl Entry {
    pub(super) fn new(link: &Arc<Link>, seen: Seen) -> Self {
        let complete = Mutex::new(seen.at);
        Self { link: Arc::clone(link), seen: Mutex::new(seen), complete }
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    /// When all of the request that has come so far had arrived.
    pub(super) fn complete(&self) -> Duration {
        *self.complete.lock()
    }

    pub(super) fn pass(&self, direction: Direction, bytes: u64) {
        match direction {
            Direction::Up => {
                self.seen.lock().up += bytes;
                *self.complete.lock() = self.link.now();
            }
            Direction::Down => self.seen.lock().down += bytes,
        }
    }

    pub(super) fn begin_answer(&self, status: u16) {
        let mut seen = self.seen.lock();
        seen.status = Some(status);
        seen.first_byte = Some(self.link.now());
    }
}

/// Writes down the end of a request when it is dropped: with the answer's body, or with a
/// request that was given up.
#[derive(Debug)]
pub(super) struct UntilEnd(pub(super) Arc<Entry>);

impl Drop for UntilEnd {
    fn drop(&mut self) {
        let now = self.0.link.now();
        self.0.seen.lock().end = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at: u64, end: Option<u64>, down: u64, up: u64) -> Seen {
        Seen {
            method: "GET".into(),
            path: "/".into(),
            range: None,
            status: Some(200),
            up,
            down,
            at: Duration::from_millis(at),
            first_byte: None,
            end: end.map(Duration::from_millis),
        }
    }

    #[test]
    fn requests_are_summed_up() {
        let requests = [
            seen(10, Some(30), 5, 0),
            seen(20, Some(40), 7, 1),
            seen(30, Some(35), 0, 2),
            seen(34, None, 0, 0),
            seen(50, Some(60), 1, 1),
        ];
        let summary = Summary {
            requests: 5,
            bytes_down: 13,
            bytes_up: 4,
            first_at: Some(Duration::from_millis(10)),
            last_at: Some(Duration::from_millis(50)),
            last_end: Some(Duration::from_millis(60)),
            most_at_once: 3,
        };
        assert_eq!(Summary::of(&requests), summary);
        assert_eq!(Summary::of(&[]), Summary::default());
    }
}
