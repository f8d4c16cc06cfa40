//! What traces and benchmarks say, and what they never do.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use inlay_testkit::cli::Inlay;
use inlay_testkit::link::LinkProfile;
use inlay_testkit::scratch;
use inlay_trace::{Tier, Trace};
use serde_json::Value;

use crate::ahead::{Remote, Snapshot};
use crate::boxes::Boxes;
use crate::recorded::{Recorded, touches};

/// Nothing comes that nobody asked for.
const NOTHING_AHEAD: &[&str] = &["--prefetch", "off"];

#[test]
fn a_trace_accounts_for_the_whole_start() {
    let remote = Remote::start();
    let boxes = Boxes::new(remote.host());
    let file = boxes.path("start.json");
    // What the program needs is loaded ahead while the sandbox is made, and who makes it slowly enough
    // waits for nothing afterwards.
    let waited = [50, 800, 4000].into_iter().any(|latency| {
        remote.proxy.shape(LinkProfile::new(Duration::from_millis(latency), None));
        let trace = traced_start(&remote.host(), &file);
        trace.path.iter().any(|part| part.what == "/bin/busybox")
    });
    assert!(waited, "the program's own file was never waited for");
}

/// Records the start of a shell on a host that has nothing yet.
fn traced_start(host: &Inlay, file: &Path) -> Trace {
    let words = ["trace", "run", "--ready", "^ready$", "--output", file.to_str().unwrap()];
    let command = ["base", "sh", "-c", "cat /etc/passwd; echo ready; exec sleep 60"];
    let clock = Instant::now();
    host.succeed([&words[..], &command].concat()).unwrap();
    let wall = u64::try_from(clock.elapsed().as_micros()).unwrap();
    let trace = Trace::parse(&fs::read(file).unwrap()).unwrap();
    let ready = trace.ready.unwrap();
    assert!(0 < ready && ready <= wall, "{ready} of {wall}");
    let mut at = 0;
    for part in &trace.path {
        assert_eq!(part.from, at, "{part:?}");
        at = part.to;
    }
    assert_eq!(at, ready);
    assert_eq!(trace.totals.path.values().sum::<u64>(), ready);
    host.wait_until_quiet().unwrap();
    trace
}

#[test]
fn a_trace_names_the_source_of_each_read() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 3);
    let host = remote.host();
    let recorded_of = |number: usize| {
        let mounted = host.mount("image", NOTHING_AHEAD).unwrap();
        let recorded = Recorded::begin(&host, &[]);
        image.read(mounted.path(), number);
        let trace = recorded.end();
        mounted.unmount().unwrap();
        let touch = touches(&trace, &format!("/{}", crate::ahead::file(number)))[0];
        assert!(touch.first && touch.bytes > 0, "{touch:?}");
        (touch.tier, trace.fetches.rows.len())
    };
    assert_eq!(recorded_of(1), (Tier::Store, 1));
    assert_eq!(recorded_of(1), (Tier::Cache, 0));
}

#[derive(Clone, Copy)]
enum Recording {
    Off,
    On,
}

#[test]
fn recording_asks_the_store_for_nothing() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 20);
    let asked_while = |recording: Recording| {
        let host = remote.host();
        let mounted = host.mount("image", NOTHING_AHEAD).unwrap();
        remote.proxy.forget();
        let recorded = match recording {
            Recording::Off => None,
            Recording::On => Some(Recorded::begin(&host, &[])),
        };
        read_all(&image, mounted.path());
        if let Some(trace) = recorded.map(Recorded::end) {
            assert_eq!(trace.touches.rows.len(), 20);
        }
        let asked = remote.asked();
        mounted.unmount().unwrap();
        host.wait_until_quiet().unwrap();
        (image.order(&asked), asked.len())
    };
    assert_eq!(asked_while(Recording::Off), asked_while(Recording::On));
}

fn read_all(image: &Snapshot, mounted: &Path) {
    (0..20).for_each(|number| image.read(mounted, number));
}

#[test]
fn events_beyond_the_limit_of_a_recording_are_counted() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 20);
    let host = remote.host();
    let mounted = host.mount("image", NOTHING_AHEAD).unwrap();
    let recorded = Recorded::begin(&host, &["--events", "10"]);
    read_all(&image, mounted.path());
    let trace = recorded.end();
    let kept = trace.touches.rows.len() + trace.fetches.rows.len();
    assert_eq!((kept, trace.dropped), (10, 30));
    mounted.unmount().unwrap();
}

#[test]
fn a_page_needs_nothing_but_a_browser() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 2);
    let host = remote.host();
    let mounted = host.mount("image", &[]).unwrap();
    let dir = scratch().unwrap();
    let (trace, page) = (dir.path().join("t.json"), dir.path().join("t.html"));
    let recorded = Recorded::begin(&host, &[]);
    image.read(mounted.path(), 1);
    fs::write(&trace, serde_json::to_vec(&recorded.end()).unwrap()).unwrap();
    mounted.unmount().unwrap();
    let words = ["trace", "show", trace.to_str().unwrap(), "--format", "html", "--output"];
    host.succeed([&words[..], &[page.to_str().unwrap()]].concat()).unwrap();
    self_contained(&fs::read_to_string(&page).unwrap());
    let report = scratch().unwrap();
    bench_a_failure(report.path());
    self_contained(&fs::read_to_string(report.path().join("report.html")).unwrap());
}

fn self_contained(page: &str) {
    // The browser itself is told to load nothing.
    assert!(page.contains("default-src 'none'"));
    for way_out in
        ["src=\"http", "href=\"http", "rel=\"stylesheet", "@import", "url(", "fetch(", "import("]
    {
        assert!(!page.contains(way_out), "{way_out}");
    }
}

/// Leaves the report of a start that fails in `dir`.
fn bench_a_failure(dir: &Path) {
    let host = Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap();
    fs::create_dir(dir.join("root")).unwrap();
    let scenario = dir.join("bad.toml");
    let text =
        "name = \"bad\"\nimage = \"dir:root\"\ncommand = [\"/nothing\"]\nready = { exit = 0 }\n";
    fs::write(&scenario, text).unwrap();
    let words = ["bench", "startup", "--runs", "1", "--method", "native,profile", "--work"];
    let place = dir.to_str().unwrap();
    let words = [&words[..], &[place, "--output", place, scenario.to_str().unwrap()]].concat();
    let ran = host.run(words).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert!(ran.stderr.contains("bad: "), "{ran:?}");
}

#[test]
fn a_benchmark_has_no_number_for_a_failure() {
    let dir = scratch().unwrap();
    bench_a_failure(dir.path());
    let report = fs::read(dir.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let failures = report["failures"].as_array().unwrap();
    assert!(failures.iter().any(|one| one.as_str().unwrap().contains("/nothing")), "{report}");
    for cell in report["cells"].as_array().unwrap() {
        assert!(cell["seconds"].is_null() && cell["ratio"].is_null(), "{cell}");
        assert!(cell["failure"].is_string(), "{cell}");
    }
}
