//! A proxy that is shaped as a link: nothing is faster than the link, and every byte is counted.
//!
//! Times are only bounded from below: a busy machine makes everything slower, nothing faster.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::link::{Bandwidth, LinkProfile};
use inlay_testkit::proxy::{Proxy, Seen, Summary};

const MS: Duration = Duration::from_millis(1);

/// The least time of a transfer that takes so many milliseconds: some of it may pass early.
fn least(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds - 1)
}

/// A server that answers `GET /N` by N bytes, and any other request when its body has come.
struct Upstream {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if ending.load(Ordering::Relaxed) {
                    break;
                }
                let stream = stream.unwrap();
                connections.push(thread::spawn(move || answer_all(&stream)));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self { address, ends, thread: Some(thread) }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        let _ = self.thread.take().unwrap().join();
    }
}

/// The request's first line and how long its body is; none when the client has left.
fn read_head(stream: &mut BufReader<&TcpStream>) -> Option<(String, usize)> {
    let mut first = String::new();
    stream.read_line(&mut first).ok().filter(|length| *length > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
        match line.trim().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => return Some((first, length)),
        }
    }
}

fn answer_all(stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    while let Some((first, length)) = read_head(&mut reader) {
        let path = first.split(' ').nth(1).unwrap();
        if reader.read_exact(&mut vec![0; length]).is_err() {
            return;
        }
        let body = vec![b'a'; path.trim_start_matches('/').parse().unwrap_or(0)];
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        answer.push_str(std::str::from_utf8(&body).unwrap());
        // A client that left takes no answer.
        if (&mut &*stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// One connection of a client.
struct Client(BufReader<TcpStream>);

impl Client {
    fn of(proxy: &Proxy) -> Self {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        Self(BufReader::new(stream))
    }

    /// How long it takes to get so many bytes.
    fn get(&mut self, bytes: usize) -> Duration {
        self.request("GET", &format!("/{bytes}"), 0, bytes)
    }

    /// How long it takes to put so many bytes.
    fn put(&mut self, bytes: usize) -> Duration {
        self.request("PUT", "/", bytes, 0)
    }

    fn request(&mut self, method: &str, path: &str, up: usize, down: usize) -> Duration {
        let start = Instant::now();
        let stream = self.0.get_mut();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {up}\r\n\r\n")
            .unwrap();
        stream.write_all(&vec![b'b'; up]).unwrap();
        let (_, length) = read_answer(&mut self.0);
        assert_eq!(length, down);
        self.0.read_exact(&mut vec![0; down]).unwrap();
        start.elapsed()
    }
}

/// The answer's first line and how long its body is.
fn read_answer(stream: &mut BufReader<TcpStream>) -> (String, usize) {
    let mut head = String::new();
    while stream.read_line(&mut head).unwrap() > 2 {}
    let first = head.lines().next().unwrap().to_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().unwrap())
    });
    (first, length.unwrap_or(0))
}

/// A link of this latency without jitter, and of so many bytes a second.
fn link(latency: Duration, bytes_per_second: u64) -> LinkProfile {
    let bandwidth = Bandwidth::bytes_per_second(bytes_per_second);
    LinkProfile::new(latency, Some(bandwidth)).with_jitter(Duration::ZERO)
}

fn assert_in_order(seen: &Seen) {
    let (first_byte, end) = (seen.first_byte.unwrap(), seen.end.unwrap());
    assert!(seen.at <= first_byte && first_byte <= end, "{seen:?}");
}

/// The requests, when the proxy has written down the end of each: shortly after the client.
fn ended(proxy: &Proxy) -> Vec<Seen> {
    inlay_testkit::wait::until("the requests' ends", || {
        proxy.seen().iter().all(|seen| seen.end.is_some())
    });
    proxy.seen()
}

#[test]
fn bytes_through_a_shaped_link_are_counted_exactly() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.shape(link(5 * MS, 20_000_000));
    let sizes = [0, 1, 16_383, 16_384, 16_385, 100_000, 1_000_003];
    let mut client = Client::of(&proxy);
    for size in sizes {
        client.get(size);
        client.put(size);
    }
    let seen = ended(&proxy);
    let counted: Vec<_> =
        seen.iter().map(|seen| (seen.method.as_str(), seen.down, seen.up)).collect();
    let expected: Vec<_> = sizes
        .iter()
        .flat_map(|size| [("GET", *size as u64, 0), ("PUT", 0, *size as u64)])
        .collect();
    assert_eq!(counted, expected);
    seen.iter().for_each(assert_in_order);
    assert!(seen.is_sorted_by_key(|seen| seen.at));
    let total = sizes.iter().sum::<usize>() as u64;
    let summary = proxy.summary();
    assert_eq!((summary.bytes_down, summary.bytes_up), (total, total));
    assert_eq!((summary.requests, summary.most_at_once), (sizes.len() * 2, 1));
    assert_eq!((proxy.bytes_down(), proxy.bytes_up()), (total, total));
}

#[test]
fn latency_adds_up() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    let profile = LinkProfile::new(30 * MS, None).with_seed(3);
    proxy.shape(profile);
    let mut client = Client::of(&proxy);
    let expected: Vec<_> = (0..6).map(|request| profile.latency_of(request)).collect();
    for (request, latency) in expected.iter().enumerate() {
        assert!(client.get(1) >= *latency, "request {request}");
    }
    for (seen, latency) in ended(&proxy).iter().zip(expected) {
        assert!(seen.first_byte.unwrap() >= seen.at + latency, "{seen:?}");
    }
}

#[test]
fn requests_at_once_are_counted() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    // Nothing passes until all have come.
    proxy.shape(link(Duration::ZERO, 1));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| Client::of(&proxy).get(1000));
        }
        inlay_testkit::wait::until("four requests", || proxy.seen().len() >= 4);
        proxy.shape(LinkProfile::NONE);
    });
    let summary = Summary::of(&ended(&proxy));
    assert_eq!((summary.requests, summary.most_at_once), (4, 4));
}

#[test]
fn a_transfer_is_not_faster_than_its_link() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.shape(link(10 * MS, 10_000_000));
    assert!(Client::of(&proxy).get(2_000_000) >= least(210));
}

/// The answer comes a round trip after all of the request.
#[test]
fn an_upload_is_not_faster_than_its_link() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.shape(link(500 * MS, 10_000_000));
    assert!(Client::of(&proxy).put(2_000_000) >= least(700));
}

#[test]
fn directions_do_not_share() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    // The first frame of the upload takes hours; the byte of the download, a second.
    proxy.shape(link(Duration::ZERO, 1));
    thread::scope(|scope| {
        scope.spawn(|| Client::of(&proxy).put(100_000));
        inlay_testkit::wait::until("a request", || !proxy.seen().is_empty());
        Client::of(&proxy).get(1);
        proxy.shape(LinkProfile::NONE);
    });
    assert_eq!((proxy.bytes_down(), proxy.bytes_up()), (1, 100_000));
}

#[test]
fn a_disconnected_client_does_not_delay_others() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.shape(link(Duration::ZERO, 1));
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.write_all(b"GET /100000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut stream = BufReader::new(stream);
    read_answer(&mut stream);
    drop(stream);
    ended(&proxy);
    proxy.shape(link(Duration::ZERO, 10_000_000));
    Client::of(&proxy).get(100_000);
}

#[test]
fn connections_share_a_link() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.shape(link(Duration::ZERO, 10_000_000));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| Client::of(&proxy).get(1_000_000));
            scope.spawn(|| Client::of(&proxy).put(1_000_000));
        }
    });
    // Each direction has all of the bandwidth, for all connections together.
    assert!(start.elapsed() >= least(300));
    assert_eq!((proxy.bytes_down(), proxy.bytes_up()), (3_000_000, 3_000_000));
}

/// A small answer takes turns with a large one; it does not wait behind it.
#[test]
fn a_small_transfer_passes_a_large_one() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    // The large one would take a minute.
    proxy.shape(link(Duration::ZERO, 500_000));
    thread::scope(|scope| {
        scope.spawn(|| Client::of(&proxy).get(30_000_000));
        inlay_testkit::wait::until("a byte", || proxy.bytes_down() != 0);
        Client::of(&proxy).get(50_000);
        let large = proxy.seen().first().map(|seen| seen.end);
        assert_eq!(large, Some(None));
        proxy.shape(LinkProfile::NONE);
    });
    let passed: Vec<_> = proxy.seen().iter().map(|seen| seen.down).collect();
    assert_eq!(passed, [30_000_000, 50_000]);
}

#[test]
fn a_shape_can_be_changed_while_something_passes() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    assert_eq!(proxy.link(), LinkProfile::NONE);
    // A frame takes hours: the test ends because the shape is taken off.
    proxy.shape(link(Duration::ZERO, 1));
    thread::scope(|scope| {
        scope.spawn(|| Client::of(&proxy).get(1_000_000));
        inlay_testkit::wait::until("the first byte", || {
            proxy.seen().first().is_some_and(|seen| seen.first_byte.is_some())
        });
        proxy.shape(LinkProfile::NONE);
    });
    assert_eq!(proxy.bytes_down(), 1_000_000);
    let slow = link(Duration::ZERO, 1_000_000);
    proxy.shape(slow);
    assert_eq!(proxy.link(), slow);
    assert!(Client::of(&proxy).get(100_000) >= least(100));
}

#[test]
fn refusals_take_their_time_too() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.shape(link(50 * MS, 1_000_000));
    proxy.inject(Rule::new(Fault::Status(503)));
    assert!(Client::of(&proxy).request("GET", "/7", 0, 0) >= 50 * MS);
    let seen = ended(&proxy);
    assert_eq!((seen[0].status, seen[0].down), (Some(503), 0));
    assert_in_order(&seen[0]);
}

#[test]
fn a_request_that_is_given_up_ends() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.inject(Rule::new(Fault::Stall));
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.write_all(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    inlay_testkit::wait::until("a request", || !proxy.seen().is_empty());
    drop(stream);
    let seen = ended(&proxy);
    assert_eq!((seen[0].status, seen[0].first_byte), (None, None));
}
