//! Metrics of real daemons: each of the table moves when what it counts happens, and `/metrics` can be
//! had on the socket and on TCP. They need root, /dev/fuse and SeaweedFS.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../common/mod.rs"]
mod common;
mod scenes;
mod watch;

use std::collections::BTreeSet;

use common::local;
use inlay_testkit::process::free_addresses;
use inlay_testkit::proxy::Proxy;
use inlay_testkit::weed::Weed;
use inlayfs::daemon::METRICS;
use watch::{Watch, get_tcp};

/// What these scenes do not move, and why not. The unit tests of `src/daemon/metrics` move all but the
/// version, which never changes within one program.
const STILL: [(&str, &str); 3] = [
    ("inlay_build_info", "another version is another program"),
    ("inlay_cache_contradictions_total", "it takes an index that lies about its own contents"),
    ("inlay_fetch_hints_dropped_total", "it takes 256 groups of read-ahead that wait at once"),
];

#[test]
fn every_metric_moves_with_its_event() {
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let mut moved = BTreeSet::new();
    for scene in [
        scenes::readers,
        scenes::loading_ahead,
        scenes::small_cache,
        scenes::bad_disk,
        scenes::sandboxes,
    ] {
        moved.extend(scene(&proxy));
        proxy.heal();
    }
    let still: BTreeSet<&str> =
        METRICS.iter().map(|metric| metric.name).filter(|name| !moved.contains(*name)).collect();
    assert_eq!(still, STILL.iter().map(|(name, _)| *name).collect());
}

#[test]
fn metrics_are_on_tcp_and_nothing_else_is() {
    let inlay = local();
    let [address] = free_addresses().unwrap();
    let mut watch = Watch::start(&inlay, &["--metrics-listen", &address.to_string()]);
    watch.until("the address is listened at", |_| get_tcp(address, "GET", "/metrics").is_some());
    let (status, text) = get_tcp(address, "GET", "/metrics").unwrap();
    assert_eq!(status, 200);
    let types = |text: &str| -> BTreeSet<String> {
        text.lines().filter(|line| line.starts_with("# ")).map(str::to_owned).collect()
    };
    assert_eq!(types(&text), types(&watch.text()));
    for metric in METRICS.iter().filter(|metric| !metric.labels.contains(&"store")) {
        assert!(text.contains(&format!("# TYPE {} {}", metric.name, metric.kind.name())));
        assert!(text.contains(&format!("# HELP {} {}", metric.name, metric.help)));
    }
    assert_eq!(get_tcp(address, "GET", "/v1/status").unwrap().0, 404);
    assert_eq!(get_tcp(address, "POST", "/metrics").unwrap().0, 405);
    let (status, body) = get_tcp(address, "HEAD", "/metrics").unwrap();
    assert_eq!((status, body.len()), (200, 0));
    // The next daemon has the address, too, although the one before it had it until it left.
    let mut next = inlay.command();
    next.args(["daemon", "--takeover", "--state"]).arg(inlay.state());
    let mut next = next.env("INLAY_METRICS_LISTEN", address.to_string()).spawn().unwrap();
    watch.wait_for_end();
    inlay.wait_for_daemon().unwrap();
    inlay_testkit::wait::until("metrics on TCP", || {
        get_tcp(address, "GET", "/metrics").is_some_and(|(status, _)| status == 200)
    });
    inlay.succeed(["daemon", "stop"]).unwrap();
    assert!(next.wait().unwrap().success());
}
