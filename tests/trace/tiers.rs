//! Which tier answered a read, and what it waited for.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use inlay_testkit::cli::Inlay;
use inlay_testkit::link::LinkProfile;
use inlay_testkit::{content, scratch};
use inlay_trace::{FetchClass, FetchOutcome, Tier};

use crate::ahead::{Remote, wait_for};
use crate::recorded::{Recorded, fetch_of, touches};

const MIB: usize = 1 << 20;

/// Imports an image whose files are of every way to be stored. `pair-a` and `pair-b` share a group.
fn import(remote: &Remote, name: &str) {
    let tree = scratch().unwrap();
    let files =
        [("alone", 60_000), ("big", 3 * MIB), ("pair-a", 9000), ("pair-b", 9000), ("tiny", 20)];
    for (file, len) in files {
        fs::write(tree.path().join(file), content::random(&format!("{name} {file}"), len)).unwrap();
    }
    let source = format!("dir:{}", tree.path().display());
    let host = remote.host();
    host.succeed(["import", &source, "--name", name, "--group-size", "32K"]).unwrap();
}

fn read(mounted: &Path, name: &str, file: &str) {
    let bytes = fs::read(mounted.join(file)).unwrap();
    assert!(bytes == content::random(&format!("{name} {file}"), bytes.len()), "{file}");
}

/// A daemon that stays while other things are mounted and unmounted.
fn kept(host: &Inlay) -> inlay_testkit::mounted::Mounted<'_> {
    host.mount("kept", &[]).unwrap()
}

#[test]
fn each_touch_says_which_tier_answered() {
    let remote = Remote::start();
    import(&remote, "image");
    import(&remote, "kept");
    let host = remote.host();
    let _kept = kept(&host);

    let mounted = host.mount("image", &[]).unwrap();
    let recorded = Recorded::begin(&host, &[]);
    remote.proxy.forget();
    read(mounted.path(), "image", "tiny");
    read(mounted.path(), "image", "alone");
    // The second of the pair comes while the first is being fetched.
    let slow = LinkProfile::new(Duration::from_secs(1), None);
    remote.proxy.shape(slow);
    let begun = remote.asked().len();
    thread::scope(|scope| {
        scope.spawn(|| read(mounted.path(), "image", "pair-a"));
        wait_for("the request for the pair", || remote.asked().len() > begun);
        read(mounted.path(), "image", "pair-b");
    });
    remote.proxy.shape(LinkProfile::new(Duration::ZERO, None));
    read(mounted.path(), "image", "big");
    // Nothing new: no page is asked for again.
    read(mounted.path(), "image", "alone");
    let trace = recorded.end();
    let tier = |path: &str| touches(&trace, path)[0].tier;
    assert_eq!(tier("/tiny"), Tier::Index);
    assert_eq!(tier("/alone"), Tier::Store);
    assert_eq!((tier("/pair-a"), tier("/pair-b")), (Tier::Store, Tier::InFlight));
    for path in ["/tiny", "/alone", "/pair-a", "/pair-b"] {
        let of = touches(&trace, path);
        assert_eq!((of.len(), of[0].first), (1, true), "{path}: {of:?}");
    }
    let (first, second) = (touches(&trace, "/pair-a")[0], touches(&trace, "/pair-b")[0]);
    assert_eq!(first.fetch, second.fetch);
    let waited = Duration::from_micros(u64::try_from(first.wait).unwrap());
    assert!(second.at > first.at && waited >= slow.shortest_latency(), "{first:?} {second:?}");
    let fetch = fetch_of(&trace, &first).unwrap();
    assert_eq!((fetch.class, fetch.outcome), (FetchClass::Demand, FetchOutcome::Ok));
    assert!(fetch.queued >= first.at && fetch.queued <= fetch.sent, "{fetch:?}");
    assert!(fetch.sent <= fetch.first_byte && fetch.first_byte <= fetch.received);
    assert!(fetch.received <= fetch.ready && fetch.ready <= first.end(), "{fetch:?} {first:?}");
    // A large file has later reads that waited, and one first touch.
    let big = touches(&trace, "/big");
    assert!(big[0].first && big.len() > 1 && big[1..].iter().all(|row| !row.first), "{big:?}");
    let size = trace.files.iter().find(|file| file.0 == "/big").unwrap().2;
    assert_eq!(size, 3 * MIB as u64);
    mounted.unmount().unwrap();

    // Mounted anew, nothing of it is in the kernel, and all of it on this host.
    let again = |file: &str| {
        let mounted = host.mount("image", &[]).unwrap();
        let recorded = Recorded::begin(&host, &[]);
        read(mounted.path(), "image", file);
        let trace = recorded.end();
        mounted.unmount().unwrap();
        assert!(trace.fetches.rows.is_empty(), "{:?}", trace.fetches);
        touches(&trace, &format!("/{file}"))[0]
    };
    let touch = again("alone");
    assert_eq!((touch.tier, touch.bytes, touch.fetch), (Tier::Cache, 60_000, -1));
    // A file that is whole on this host is read by the kernel, as soon as its contents were hashed.
    wait_for("the kernel to read the large file", || again("big").tier == Tier::Kernel);
}

#[test]
fn only_the_selected_mount_is_recorded() {
    let remote = Remote::start();
    import(&remote, "one");
    import(&remote, "other");
    let host = remote.host();
    let (one, other) = (host.mount("one", &[]).unwrap(), host.mount("other", &[]).unwrap());
    let options = ["--mount", one.path().to_str().unwrap()];
    let recorded = Recorded::begin(&host, &options);
    read(one.path(), "one", "alone");
    read(other.path(), "other", "alone");
    let trace = recorded.end();
    assert_eq!(trace.snapshots.len(), 1);
    assert_eq!(trace.snapshots[0].name.as_deref(), Some("one"));
    assert_eq!(trace.touches.rows.len(), 1);
    // What shares the way to the store is there, without a snapshot.
    let of: Vec<i64> = trace.fetches.rows.iter().map(|row| row.snapshot).collect();
    assert_eq!(of, [0, -1]);
    let nowhere = host.fail(["trace", "record", "--mount", "/nowhere"]).unwrap();
    assert!(nowhere.stderr.contains("nothing is mounted at /nowhere"), "{nowhere:?}");
}

#[test]
fn a_read_that_fails_and_one_that_still_waits_are_there() {
    use inlay_testkit::faults::{Fault, Rule};
    let remote = Remote::start();
    import(&remote, "image");
    let host = remote.host();
    let mounted = host.mount("image", &[]).unwrap();
    let recorded = Recorded::begin(&host, &[]);
    remote.proxy.inject(Rule::new(Fault::Missing).method("GET").path("/blobs/"));
    fs::read(mounted.path().join("alone")).unwrap_err();
    remote.proxy.heal();
    remote.proxy.inject(Rule::new(Fault::Stall).method("GET").path("/blobs/"));
    let begun = remote.asked().len();
    let path = mounted.path().join("pair-a");
    let waits = thread::spawn(move || fs::read(path));
    wait_for("the request that stalls", || remote.asked().len() > begun);
    let trace = recorded.end();
    let failed = touches(&trace, "/alone")[0];
    assert_eq!(fetch_of(&trace, &failed).unwrap().outcome, FetchOutcome::Failed);
    let waiting = touches(&trace, "/pair-a")[0];
    let fetch = fetch_of(&trace, &waiting).unwrap();
    assert_eq!((fetch.ready, fetch.outcome), (-1, FetchOutcome::Ok));
    assert!(waiting.end() <= i64::try_from(trace.duration).unwrap());
    remote.proxy.heal();
    host.succeed(["umount", "--force", mounted.path().to_str().unwrap()]).ok();
    drop(mounted);
    drop(waits.join().unwrap());
}
