//! `inlay trace run`: starts of sandboxes, their critical paths, and starts that come to nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use inlay_testkit::cli::{Inlay, Ran};
use inlay_testkit::link::LinkProfile;
use inlay_testkit::scratch;
use inlay_trace::{SegmentKind, Tier, Trace};
use serde_json::Value;

use crate::ahead::Remote;
use crate::boxes::Boxes;
use crate::recorded::touches;

/// Each request takes at least so long.
const LATENCY: Duration = Duration::from_millis(150);

fn link() -> LinkProfile {
    LinkProfile::new(LATENCY, None)
}

/// A store with the image `base` behind a link, and a host that has nothing of it.
struct Cold {
    _boxes: Boxes,
    remote: Remote,
    host: Inlay,
}

impl Cold {
    fn new() -> Self {
        let remote = Remote::start();
        let boxes = Boxes::new(remote.host());
        boxes.inlay.wait_until_quiet().unwrap();
        let host = remote.host();
        remote.proxy.shape(link());
        Self { _boxes: boxes, remote, host }
    }

    fn run(&self, words: &[&str]) -> Ran {
        self.host.run([&["trace", "run"], words].concat()).unwrap()
    }

    fn no_file_or_mount_is_left(&self) {
        let ran = self.host.succeed(["sandbox", "ls", "--json"]).unwrap();
        let listed: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), 0);
        self.host.wait_until_quiet().unwrap();
    }
}

fn read(path: &Path) -> Trace {
    Trace::parse(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_critical_path_is_the_start() {
    let cold = Cold::new();
    let dir = scratch().unwrap();
    let (json, html) = (dir.path().join("t.json"), dir.path().join("t.html"));
    let script = "cat /etc/passwd; echo ready; exec sleep 60";
    let ran = cold.run(&[
        "--ready",
        "^ready$",
        "--output",
        json.to_str().unwrap(),
        "--html",
        html.to_str().unwrap(),
        "base",
        "sh",
        "-c",
        script,
    ]);
    assert!(ran.status.success(), "{ran:?}");
    assert!(ran.stderr.contains("root:x:0:0") && ran.stderr.contains("ready"), "{ran:?}");
    let trace = read(&json);
    let ready = trace.ready.unwrap();
    // Trace::parse has checked that it has no gap; and here are the sums.
    assert_eq!(trace.path.iter().map(|one| one.to - one.from).sum::<u64>(), ready);
    assert_eq!(trace.totals.path.values().sum::<u64>(), ready);
    assert_eq!(trace.ready_by.as_deref(), Some("output /^ready$/"));
    // The index came over the link, and then the program: it may have come before somebody waited for it.
    let share = |kind: SegmentKind| trace.totals.path[kind.name()];
    let latency = u64::try_from(link().shortest_latency().as_micros()).unwrap();
    assert!(share(SegmentKind::Attach) >= 2 * latency, "{:?}", trace.totals.path);
    let answered = [SegmentKind::Store, SegmentKind::InFlight, SegmentKind::Served].map(share);
    assert!(answered.iter().sum::<u64>() > 0, "{:?}", trace.totals.path);
    assert!(share(SegmentKind::Runtime) > 0);
    let busybox = touches(&trace, "/bin/busybox");
    assert!(busybox[0].first && busybox[0].tier > Tier::Index, "{busybox:?}");
    assert!(trace.path.iter().any(|one| one.what == "/bin/busybox" && one.touch >= 0));
    assert_eq!(touches(&trace, "/etc/passwd")[0].tier, Tier::Index);
    let at = |name: &str| trace.marks.iter().find(|mark| mark.name == name).unwrap().at;
    let life = ["begin", "asked", "resolved", "attached", "mounted", "created", "starting"];
    assert!(life.windows(2).all(|pair| at(pair[0]) <= at(pair[1])), "{:?}", trace.marks);
    assert!(at("starting") <= at("first-exec") && at("first-output") <= at("ready"));
    assert_eq!(at("ready"), ready);
    assert!(trace.served.reads > 0 && trace.served.requests > trace.served.reads);
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("inlay-trace") && page.contains("/bin/busybox"));
    let text = ran.text();
    assert!(text.contains("CRITICAL PATH") && text.contains("/bin/busybox"), "{text}");
    cold.no_file_or_mount_is_left();
    shown(&cold.host, &json);
}

/// The same trace in all forms.
fn shown(host: &Inlay, json: &Path) {
    let show = |options: &[&str]| {
        let file = json.to_str().unwrap();
        host.succeed([&["trace", "show", file], options].concat()).unwrap().text()
    };
    let trace = read(json);
    assert!(show(&[]).contains("CRITICAL PATH"));
    assert_eq!(Trace::parse(show(&["--json"]).as_bytes()).unwrap(), trace);
    assert_eq!(Trace::parse(show(&["--format", "json"]).as_bytes()).unwrap(), trace);
    let chrome: Value = serde_json::from_str(&show(&["--format", "chrome"])).unwrap();
    let events = chrome["traceEvents"].as_array().unwrap();
    let of =
        |process: u64| events.iter().filter(move |one| one["ph"] == "X" && one["pid"] == process);
    assert_eq!(of(1).count(), trace.path.len());
    assert_eq!(of(2).count(), trace.touches.rows.len());
    assert!(show(&["--format", "html"]).contains("/bin/busybox"));
    let wrong = json.with_extension("wrong");
    fs::write(&wrong, "{\"format\":\"inlay-trace\",\"version\":7}").unwrap();
    let ran = host.fail(["trace", "show", wrong.to_str().unwrap()]).unwrap();
    assert!(ran.stderr.contains("version 7"), "{ran:?}");
}

#[test]
fn a_port_that_answers_and_an_end_count_as_ready() {
    let cold = Cold::new();
    let ran = cold.run(&["--json", "base", "true"]);
    assert!(ran.status.success(), "{ran:?}");
    let trace = Trace::parse(&ran.stdout).unwrap();
    assert_eq!(trace.ready_by.as_deref(), Some("exit 0"));
    // The image has no server: the sandbox's own network has nothing at this port.
    let ran = cold.run(&["--ready-port", "9", "--timeout", "2s", "base", "sleep", "60"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert!(ran.stderr.contains("not ready (port 9) after 2s"), "{ran:?}");
    cold.no_file_or_mount_is_left();
}

#[test]
fn a_failed_start_is_reported_and_its_recording_is_kept() {
    let cold = Cold::new();
    let dir = scratch().unwrap();
    let file = dir.path().join("t.json");
    let path = file.to_str().unwrap();
    let failed = |words: &[&str], told: &str| {
        let ran = cold.run(&[&["--output", path], words].concat());
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        assert!(ran.stderr.contains(told), "{told}: {ran:?}");
        assert!(ran.stdout.is_empty(), "{ran:?}");
        let trace = read(&file);
        fs::remove_file(&file).unwrap();
        assert_eq!((trace.ready, trace.ready_by.as_deref()), (None, None));
        trace
    };
    let trace = failed(&["base", "sh", "-c", "exit 3"], "exit code 3, not with 0");
    assert_eq!(touches(&trace, "/bin/busybox").len().min(1), 1);
    assert!(trace.marks.iter().any(|mark| mark.name == "exit" && mark.detail == "3"));
    failed(&["--ready", "never", "base", "true"], "exit code 0 before it was ready");
    failed(
        &["--ready", "never", "--timeout", "1s", "base", "sleep", "60"],
        "not ready (output /never/) after 1s",
    );
    failed(&["base", "/no/such/program"], "/no/such/program");
    failed(&["nothing"], "no snapshot 'nothing'");
    cold.no_file_or_mount_is_left();
    // The store is down.
    let Cold { remote, host, _boxes } = cold;
    host.wait_until_quiet().unwrap();
    let fresh = remote.host().with_environment([("AWS_ENDPOINT_URL", "http://127.0.0.1:9")]);
    let ran = fresh.run(["trace", "run", "--output", path, "base", "true"]).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert!(ran.stderr.contains("s3://inlay-test") && ran.stderr.contains("refused"), "{ran:?}");
    assert_eq!(read(&file).ready, None);
    fresh.wait_until_quiet().unwrap();
}
