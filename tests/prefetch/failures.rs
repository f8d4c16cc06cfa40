//! A store that fails or is only read; a host without a cache; a daemon that dies.

use inlay_testkit::cli::Inlay;
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::weed::BUCKET;

use crate::ahead::{ALL, Remote, Snapshot, assert_nothing_twice, wait_for};

const RECORDED: &[&str] = &["--prefetch", "all", "--record-profile", "on"];

/// How many starts the profile of it has seen; none if there is no profile.
fn runs(host: &Inlay, name: &str) -> Option<u64> {
    let ran = host.run(["profile", "show", "--json", name]).unwrap();
    if !ran.status.success() {
        assert!(ran.stderr.contains("no profile"), "{ran:?}");
        return None;
    }
    let shown: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    shown["runs"].as_u64()
}

fn assert_quiet(host: &Inlay) {
    let log = host.daemon_log();
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
}

#[test]
fn prefetch_gives_up_on_store_errors_and_reads_go_on() {
    let remote = Remote::start();
    let broken = remote.import("broken", "directory", 100);
    let well = remote.import("well", "image", 40);
    let host = remote.host();
    remote.proxy.forget();
    remote.proxy.inject(Rule::new(Fault::Status(500)).method("GET").path(&broken.blob()));
    let lost = host.mount("broken", ALL).unwrap();
    broken.wait_for_phase(&host, "resting");
    // More urgent as it is, it stands in nobody's way.
    let mounted = host.mount("well", ALL).unwrap();
    well.read(mounted.path(), 35);
    well.wait_for_phase(&host, "done");
    well.compare(mounted.path());
    let failed = remote.asked().iter().filter(|asked| asked.status == Some(500)).count();
    assert!((1..100).contains(&failed), "{failed} requests for what can't be had");
    assert_quiet(&host);
    remote.proxy.heal();
    broken.compare(lost.path());
}

#[test]
fn a_store_that_is_only_read_is_not_written_to() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 40);
    let proxy = Proxy::start(remote.weed.filer()).unwrap();
    let url = format!("http://{}/buckets/{BUCKET}/p", proxy.address());
    let host = remote.host().with_environment([("INLAY_STORE", url)]);
    let mounted = host.mount(&image.id, RECORDED).unwrap();
    image.read(mounted.path(), 20);
    image.wait_for_phase(&host, "done");
    image.compare(mounted.path());
    mounted.unmount().unwrap();
    host.wait_until_quiet().unwrap();
    let seen = proxy.seen();
    assert!(seen.iter().any(|seen| seen.path.contains("/blobs/")));
    let other: Vec<_> =
        seen.iter().filter(|seen| !matches!(&*seen.method, "GET" | "HEAD")).collect();
    assert!(other.is_empty(), "{other:?}");
    assert_eq!(runs(&remote.host(), "image"), None);
    assert_quiet(&host);
}

#[test]
fn without_a_cache_only_groups_that_are_read_are_fetched() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 40);
    let host = remote.host();
    remote.proxy.forget();
    let mounted = host.mount("image", &[RECORDED, &["--no-cache"]].concat()).unwrap();
    for number in [30, 10, 20] {
        image.read(mounted.path(), number);
    }
    assert_eq!(image.status(&host).unwrap()["phase"], "off");
    mounted.unmount().unwrap();
    host.wait_until_quiet().unwrap();
    let read = [30, 10, 20].map(|number| image.group_of(number));
    assert_eq!(image.order(&remote.asked()), read);
    // What it has read teaches others nevertheless.
    assert_eq!(runs(&host, "image"), Some(1));
}

#[test]
fn a_start_that_can_not_be_recorded_is_no_failure() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 40);
    let host = remote.host();
    remote.proxy.inject(Rule::new(Fault::Status(403)).path("/profiles/"));
    let mounted = host.mount("image", RECORDED).unwrap();
    image.compare(mounted.path());
    image.wait_for_phase(&host, "done");
    mounted.unmount().unwrap();
    host.wait_until_quiet().unwrap();
    assert!(host.daemon_log().contains("can't record a start"), "{}", host.daemon_log());
    remote.proxy.heal();
    assert_eq!(runs(&host, "image"), None);
}

fn fetched(remote: &Remote, image: &Snapshot) -> usize {
    image.order(&remote.asked()).len()
}

#[test]
fn loading_goes_on_with_the_next_daemon() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 240);
    let host = remote.host();
    remote.proxy.forget();
    remote.slow_down();
    let mounted = host.mount("image", RECORDED).unwrap();
    image.read(mounted.path(), 200);
    for round in 1..4 {
        wait_for("loading to go on", || fetched(&remote, &image) > round * 40);
        mounted.kill_server().unwrap();
        host.wait_for_daemon().unwrap();
    }
    assert!(fetched(&remote, &image) < image.len(), "the link is not slow enough");
    // Nobody reads: the next daemon goes on by itself.
    let shown = image.wait_for_phase(&host, "done");
    assert_eq!(shown["recording"], false, "{shown}");
    remote.wait_until_quiet();
    let asked = remote.asked();
    let whole: Vec<_> = asked.iter().filter(|asked| asked.down == asked.len()).cloned().collect();
    let mut order = image.order(&whole);
    order.sort_unstable();
    order.dedup();
    assert_eq!(order.len(), image.len());
    // All of it is there, and right.
    image.compare(mounted.path());
    assert_eq!(remote.asked().len(), asked.len());
    mounted.unmount().unwrap();
    host.wait_until_quiet().unwrap();
    // No daemon has seen the start from its beginning to its end.
    assert_eq!(runs(&host, "image"), None);
}

#[test]
fn two_mounts_of_one_snapshot_are_one_start() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 60);
    let host = remote.host();
    remote.proxy.forget();
    let one = host.mount("image", RECORDED).unwrap();
    let two = host.mount("image", &[RECORDED, &["--rw", "--scratch"]].concat()).unwrap();
    image.read(one.path(), 50);
    image.read(two.path(), 10);
    image.wait_for_phase(&host, "done");
    remote.wait_until_quiet();
    assert_nothing_twice(&remote.asked());
    one.unmount().unwrap();
    two.unmount().unwrap();
    host.wait_until_quiet().unwrap();
    assert_eq!(runs(&host, "image"), Some(1));
}
