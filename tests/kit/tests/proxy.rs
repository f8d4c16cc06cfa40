//! The proxy passes requests on, counts them and breaks them as told.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;

const BODY: &[u8] = &[b'a'; 100_000];

/// A server that gives every request the same body, until it is asked for `/end`.
struct Upstream {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut head = String::new();
                while stream.read_line(&mut head).unwrap_or(0) > 2 {}
                if head.starts_with("GET /end") {
                    return;
                }
                let length = BODY.len();
                let stream = stream.get_mut();
                // A client that was cut off does not take all: that is what is tested.
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n");
                let _ = write!(stream, "Connection: close\r\n\r\n");
                let _ = stream.write_all(BODY);
            }
        });
        Self { address, thread: Some(thread) }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = TcpStream::connect(self.address).unwrap().write_all(b"GET /end\r\n\r\n");
        let _ = self.thread.take().unwrap().join();
    }
}

/// The status and what came of the body.
fn get(address: SocketAddr, path: &str, patience: Duration) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(piece.get(..len).unwrap());
    }
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return (String::new(), answer);
    };
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), body)
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn requests_without_faults_pass_and_are_counted() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    let (status, body) = get(proxy.address(), "/bucket/key?x=1", LONG);
    assert_eq!((status.as_str(), body.as_slice()), ("200", BODY));
    let seen = proxy.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("GET", "/bucket/key?x=1"));
    assert_eq!((seen[0].status, seen[0].down), (Some(200), BODY.len() as u64));
    assert_eq!(proxy.bytes_down(), BODY.len() as u64);
    proxy.forget();
    assert_eq!(proxy.bytes_down(), 0);
}

#[test]
fn each_fault_happens() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    let broken = |fault, patience| {
        proxy.heal();
        proxy.inject(Rule::new(fault));
        get(proxy.address(), "/key", patience)
    };
    assert_eq!(broken(Fault::Status(503), LONG), ("503".into(), Vec::new()));

    let (status, body) = broken(Fault::Missing, LONG);
    assert_eq!(status, "404");
    assert!(String::from_utf8(body).unwrap().contains("NoSuchKey"));

    assert_eq!(broken(Fault::Stall, SHORT), (String::new(), Vec::new()));

    let (status, body) = broken(Fault::StallBody(10), SHORT);
    assert_eq!((status.as_str(), body.as_slice()), ("200", &BODY[..10]));

    let (_, body) = broken(Fault::CutBody(70_000), LONG);
    assert!(body.len() <= 70_000, "{}", body.len());

    let (status, body) = broken(Fault::FlipByte(50_000), LONG);
    assert_eq!((status.as_str(), body.len()), ("200", BODY.len()));
    let changed: Vec<_> = (0..BODY.len()).filter(|at| body[*at] != BODY[*at]).collect();
    assert_eq!(changed, [50_000]);
}

#[test]
fn a_rule_keeps_to_its_requests() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address).unwrap();
    proxy.inject(Rule::new(Fault::Status(500)).method("GET").path("/blobs/").after(1).times(2));
    proxy.inject(Rule::new(Fault::Status(501)).method("PUT"));
    let mut statuses = Vec::new();
    for path in ["/blobs/1", "/other", "/blobs/2", "/blobs/3", "/blobs/4"] {
        statuses.push(get(proxy.address(), path, LONG).0);
    }
    assert_eq!(statuses, ["200", "200", "500", "500", "200"]);
    assert_eq!(proxy.requests("GET", "/blobs/").len(), 4);
}
