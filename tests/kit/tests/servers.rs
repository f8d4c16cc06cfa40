//! The servers of the kit answer, and end with their owner.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use inlay_testkit::link::LinkProfile;
use inlay_testkit::proxy::Proxy;
use inlay_testkit::registry::{Access, Registry};
use inlay_testkit::weed::{BUCKET, Weed};

fn status(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).lines().next().unwrap().to_owned()
}

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn seaweedfs_asks_for_a_key() {
    let weed = Weed::start().unwrap();
    let pid = weed.pid();
    assert!(is_running(pid));
    assert!(status(weed.address(), &format!("/{BUCKET}/")).contains("403"));
    drop(weed);
    assert!(!is_running(pid));
}

#[test]
fn the_open_registry_answers() {
    let registry = Registry::start(Access::Open).unwrap();
    let pid = registry.pid();
    assert!(status(registry.address(), "/v2/").contains("200"));
    drop(registry);
    assert!(!is_running(pid));
}

#[test]
fn the_registry_answers_over_a_link() {
    let registry = Registry::start(Access::Open).unwrap();
    let proxy = Proxy::start(registry.address()).unwrap();
    let latency = Duration::from_millis(50);
    proxy.shape(LinkProfile::new(latency, None).with_jitter(Duration::ZERO));
    assert!(status(proxy.address(), "/v2/").contains("200"));
    let seen = proxy.requests("GET", "/v2/");
    assert!(seen[0].first_byte.unwrap() >= seen[0].at + latency);
}

#[test]
fn the_registry_asks_for_a_password() {
    let registry = Registry::start(Access::Password).unwrap();
    assert!(status(registry.address(), "/v2/").contains("401"));
}
