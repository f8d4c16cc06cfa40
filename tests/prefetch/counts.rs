//! What a start that was recorded costs the next host. Counts, not times: a change that makes more
//! requests or moves more bytes until the start's last file is there fails here.
//!
//! The tree is the same in every run, so the numbers are. Who means to change them (groups of other
//! sizes, another order) runs the test, which says what it counted, and puts that into the constants.

use std::path::Path;

use crate::ahead::{Asked, Remote, Snapshot, assert_nothing_twice};

/// Files of the tree, and which of them the start reads, in this order.
const FILES: usize = 160;
const START: [usize; 24] = [
    90, 91, 92, 3, 150, 40, 41, 7, 120, 64, 65, 66, 67, 30, 101, 11, 140, 80, 55, 20, 33, 110, 5,
    130,
];
/// What comes until the last file of the start is there. Neighbours share a request.
const REQUESTS: u64 = 18;
const BYTES: u64 = 1_440_000;
/// How far a count may be from these, in percent.
const TOLERANCE: u64 = 5;

fn assert_near(what: &str, counted: u64, expected: u64) {
    let far = counted.abs_diff(expected) * 100 > expected * TOLERANCE;
    assert!(!far, "{what}: {counted}, and {expected} were expected");
}

fn start(image: &Snapshot, mounted: &Path) {
    for number in START {
        image.read(mounted, number);
    }
}

fn bytes(asked: &[Asked]) -> u64 {
    asked.iter().map(|asked| asked.down).sum()
}

fn record(remote: &Remote, image: &Snapshot) {
    let host = remote.host();
    let words = ["--prefetch", "off", "--record-profile", "on"];
    let mounted = host.mount("image", &words).unwrap();
    start(image, mounted.path());
    mounted.unmount().unwrap();
    host.wait_until_quiet().unwrap();
}

#[test]
fn a_recorded_start_costs_no_more_than_before() {
    let remote = Remote::start();
    let image = remote.import("image", "image", FILES);
    record(&remote, &image);

    // The start reads when it is there: nothing more comes.
    let host = remote.host();
    remote.proxy.forget();
    let mounted = host.mount("image", &["--prefetch", "profile"]).unwrap();
    image.wait_for_phase(&host, "done");
    remote.wait_until_quiet();
    start(&image, mounted.path());
    let asked = remote.asked();
    assert_near("requests", asked.len() as u64, REQUESTS);
    assert_near("bytes", bytes(&asked), BYTES);
    mounted.unmount().unwrap();

    // It reads while it comes: the same bytes, and no file costs two requests.
    let host = remote.host();
    remote.proxy.forget();
    remote.slow_down();
    let mounted = host.mount("image", &["--prefetch", "profile"]).unwrap();
    start(&image, mounted.path());
    remote.wait_until_quiet();
    let asked = remote.asked();
    assert!(asked.len() <= START.len(), "{} requests", asked.len());
    assert_near("bytes", bytes(&asked), BYTES);
    assert_nothing_twice(&asked);
    mounted.unmount().unwrap();

    // With everything else behind it: nothing comes before its last.
    let host = remote.host();
    let mounted = host.mount("image", &["--prefetch", "all"]).unwrap();
    image.wait_for_phase(&host, "done");
    let decided = image.decisions(&host);
    let early = START.map(|number| image.group_of(number));
    assert!(decided[..START.len()].iter().all(|(_, group)| early.contains(group)), "{decided:?}");
    assert_eq!(decided.len(), image.len());
    mounted.unmount().unwrap();
}
