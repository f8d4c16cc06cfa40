//! `inlay bench startup` on small roots: what works has numbers that fit to each other, what does not has
//! none. It needs runc and busybox, and the test kit's program `shaped-store` beside `inlay`, which
//! `cargo test --workspace` builds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a test ends at the first surprise"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use inlay_testkit::proxy::Proxy;
use inlay_testkit::weed::{BUCKET, Weed};
use serde_json::Value;
use tempfile::TempDir;

/// Bytes that the good start reads.
const DATA: usize = 1 << 20;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for name in ["bin", "tmp", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|at| Path::new(at).exists());
        fs::copy(
            busybox.unwrap_or_else(|| panic!("busybox is missing: install busybox-static")),
            root.join("bin/busybox"),
        )
        .unwrap();
        for name in ["sh", "cat", "echo", "sleep", "test"] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        let mut random = fastrand::Rng::with_seed(7);
        let data: Vec<u8> = (0..DATA).map(|_| random.u8(..)).collect();
        fs::write(root.join("data"), data).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn scenario(&self, name: &str, command: &str, more: &str) -> String {
        let file = self.path(&format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\nimage = \"dir:root\"\ncommand = \"{command}\"\nready = {{ output = \"^ready$\" }}\n{more}\n"
        );
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn bench(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inlay"));
        command.env_remove("INLAY_STORE");
        self.bench_by(command, &[&["--link", "5ms,1gbit"], words].concat())
    }

    fn bench_by(&self, mut command: Command, words: &[&str]) -> Output {
        let work = self.path("work");
        fs::create_dir_all(&work).unwrap();
        command.args(["--json", "bench", "startup", "--runs", "1", "--work"]);
        let ended = command.arg(&work).args(words).output().unwrap();
        let left: Vec<_> = fs::read_dir(&work).unwrap().collect();
        assert!(left.is_empty(), "left: {left:?}; {}", String::from_utf8_lossy(&ended.stderr));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        ended
    }
}

fn report(ended: &Output) -> Value {
    serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)))
}

fn cell<'a>(report: &'a Value, scenario: &str, method: &str, state: &str) -> &'a Value {
    let fits = |cell: &&Value| {
        cell["scenario"] == scenario && cell["method"] == method && cell["state"] == state
    };
    report["cells"].as_array().unwrap().iter().find(fits).unwrap()
}

#[test]
fn measurements_are_consistent() {
    let place = Place::new();
    let good = place.scenario("good", "cat /data > /dev/null && echo ready", "");
    let output = place.path("report");
    let ended = place.bench(&["--output", output.to_str().unwrap(), &good]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let report = report(&ended);
    for cell in report["cells"].as_array().unwrap() {
        assert_eq!(cell["samples"].as_array().unwrap().len(), 1, "{cell}");
        assert!(cell["seconds"]["median"].as_f64().unwrap() > 0.0, "{cell}");
    }
    let bytes = |method, state| {
        cell(&report, "good", method, state)["samples"][0]["bytes"].as_u64().unwrap()
    };
    let requests = |method, state| {
        cell(&report, "good", method, state)["samples"][0]["requests"].as_u64().unwrap()
    };
    for method in ["profile", "no-profile", "no-prefetch"] {
        assert!(bytes(method, "cold") > DATA as u64, "{method}");
        assert!(requests(method, "cold") > 1, "{method}");
    }
    for (method, state) in [("prefetched", "warm"), ("profile", "warm"), ("no-prefetch", "hot")] {
        assert!(bytes(method, state) < DATA as u64 / 10, "{method} {state}");
    }
    assert_eq!(bytes("native", "hot"), 0);
    let scenario = &report["scenarios"][0];
    let needed = scenario["needed"]["stored_bytes"].as_f64().unwrap();
    assert!(needed > DATA as f64, "{scenario}");
    // As the documentation says, so that anybody can check it.
    let native = cell(&report, "good", "native", "hot")["seconds"]["median"].as_f64().unwrap();
    let ideal = scenario["ideal"]["5ms,1gbit"].as_f64().unwrap();
    assert!((ideal - (2.0 * 0.005 + needed / 125e6 + native)).abs() < 1e-6, "{scenario}");
    for (file, says) in
        [("report.json", "inlay-bench"), ("report.md", "## good over"), ("report.html", "<svg")]
    {
        let text = fs::read_to_string(output.join(file)).unwrap();
        assert!(text.contains(says), "{file}");
    }
}

/// `inlay` without the test kit's program: the directory of the build has both.
fn inlay_alone() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let alone = dir.path().join("inlay");
    fs::hard_link(env!("CARGO_BIN_EXE_inlay"), &alone).unwrap();
    (dir, alone)
}

#[test]
fn the_program_alone_measures_with_a_local_directory() {
    let place = Place::new();
    let (_dir, alone) = inlay_alone();
    let good = place.scenario("good", "cat /data > /dev/null && echo ready", "");
    let mut command = Command::new(&alone);
    command.env_remove("INLAY_STORE").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let ended = place.bench_by(command, &["--method", "profile,no-profile", &good]);
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{stderr}");
    // The warning names the missing program, and how to get it.
    assert!(
        stderr.contains("shaped-store") && stderr.contains("scripts/bench startup"),
        "{stderr}"
    );
    let report = report(&ended);
    assert_eq!(report["conditions"]["store"], "a local directory", "{report}");
    assert_eq!(report["links"][0]["name"], "own", "{report}");
    for cell in report["cells"].as_array().unwrap() {
        assert!(cell["seconds"]["median"].as_f64().unwrap() > 0.0, "{cell}");
    }
    let bytes = cell(&report, "good", "profile", "cold")["samples"][0]["bytes"].as_u64().unwrap();
    assert!(bytes > DATA as u64, "{report}");
}

#[test]
fn a_shaped_link_that_was_asked_for_is_not_replaced() {
    let place = Place::new();
    let (_dir, alone) = inlay_alone();
    let good = place.scenario("good", "echo ready", "");
    let mut command = Command::new(&alone);
    command.env_remove("INLAY_STORE").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let ended = place.bench_by(command, &["--link", "wan", &good]);
    assert_eq!(ended.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        stderr.contains("shaped-store") && stderr.contains("scripts/bench startup"),
        "{stderr}"
    );
    assert!(ended.stdout.is_empty(), "{ended:?}");
}

#[test]
fn the_ideal_of_an_own_store_counts_its_latency_and_bandwidth() {
    const LATENCY: f64 = 0.005;
    const RATE: f64 = 12.5e6;
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    proxy.shape("5ms,100mbit".parse().unwrap());
    let place = Place::new();
    let good = place.scenario("good", "cat /data > /dev/null && echo ready", "");
    // More than what the start reads: the rate is measured while all of it is loaded.
    let mut random = fastrand::Rng::with_seed(8);
    let more: Vec<u8> = (0..24 * DATA).map(|_| random.u8(..)).collect();
    fs::write(place.path("root/more"), more).unwrap();
    let (_dir, alone) = inlay_alone();
    let mut command = Command::new(&alone);
    command
        .envs(Weed::environment(proxy.address()))
        .env("INLAY_STORE", format!("s3://{BUCKET}/own"));
    let ended = place.bench_by(command, &["--method", "profile", &good]);
    let report = report(&ended);
    assert!(ended.status.success(), "{report}");
    let speed = &report["links"][0]["figures"];
    let latency = speed["latency"].as_f64().unwrap();
    let bandwidth = speed["bandwidth"].as_f64().unwrap_or_else(|| panic!("{report}"));
    // A busy machine makes the link look slower; what its sockets hold makes it look a little faster.
    assert!(latency > 0.9 * LATENCY, "{speed}");
    assert!(0.0 < bandwidth && bandwidth < 1.5 * RATE, "{speed}");
    let native = cell(&report, "good", "native", "hot")["seconds"]["median"].as_f64().unwrap();
    let needed = report["scenarios"][0]["needed"]["stored_bytes"].as_f64().unwrap();
    assert!(needed > DATA as f64, "{report}");
    let ideal = report["scenarios"][0]["ideal"]["own"].as_f64().unwrap();
    assert!((ideal - (2.0 * latency + needed / bandwidth + native)).abs() < 1e-6, "{report}");
}

#[test]
fn cold_starts_alone_have_an_ideal() {
    let place = Place::new();
    let good = place.scenario("good", "cat /data > /dev/null && echo ready", "");
    let ended = place.bench(&["--host", "cold", "--method", "profile", &good]);
    let report = report(&ended);
    assert!(cell(&report, "good", "profile", "cold")["ratio"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["cells"].as_array().unwrap().len(), 2, "{report}");
}

#[test]
fn failed_starts_have_no_measurements() {
    let place = Place::new();
    let good = place.scenario("good", "echo ready", "");
    let ends = place.scenario("ends", "echo out of luck; exit 3", "");
    let never = place.scenario("never", "sleep 60", "timeout = \"500ms\"");
    // Only where inlay's root is: its upper directory is not the native one's.
    let ended =
        place.bench(&["--method", "no-prefetch", "--host", "cold,hot", &good, &ends, &never]);
    assert_eq!(ended.status.code(), Some(1));
    let report = report(&ended);
    let failures = report["failures"].to_string();
    assert!(failures.contains("ends: the command ended with 3"), "{failures}");
    assert!(failures.contains("out of luck"), "{failures}");
    assert!(failures.contains("never: the command was not ready after 500ms"), "{failures}");
    for cell in report["cells"].as_array().unwrap() {
        let is_good = cell["scenario"] == "good";
        assert_eq!(cell["samples"].as_array().unwrap().is_empty(), !is_good, "{cell}");
        assert_eq!(cell["seconds"].is_null(), !is_good, "{cell}");
        assert_eq!(cell["failure"].is_null(), is_good, "{cell}");
    }
}

#[test]
fn a_method_that_fails_has_no_number_and_others_have() {
    let place = Place::new();
    let good = place.scenario("good", "echo ready", "");
    let adapter = place.path("broken");
    let script = "#!/bin/sh\ncase $1 in\ndescribe) echo '{\"name\":\"broken\",\"what\":\"Breaks\",\"lazy\":false}';;\nprepare) test -n \"$BENCH_OCI\" && grep -q '\"bench\"' \"$BENCH_OCI/index.json\";;\nup) echo 'the disk is full' >&2; exit 1;;\nesac\n";
    fs::write(&adapter, script).unwrap();
    fs::set_permissions(&adapter, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let words = ["--adapter", adapter.to_str().unwrap(), "--method", "broken", &good];
    let ended = place.bench(&words);
    assert_eq!(ended.status.code(), Some(1));
    let report = report(&ended);
    let broken = cell(&report, "good", "broken", "cold");
    assert!(broken["failure"].as_str().unwrap().contains("the disk is full"), "{broken}");
    assert!(broken["seconds"].is_null() && broken["ratio"].is_null(), "{broken}");
    assert!(cell(&report, "good", "native", "hot")["seconds"]["median"].is_f64());
}

#[test]
fn a_store_that_is_down_is_told() {
    let place = Place::new();
    let file = place.scenario("good", "echo ready", "");
    let text = fs::read_to_string(&file).unwrap().replace("dir:root", "snapshot:base");
    fs::write(&file, text).unwrap();
    let work = place.path("work");
    fs::create_dir_all(&work).unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_inlay"))
        .args(["--store", "http://127.0.0.1:1/store", "--json", "bench", "startup", "--work"])
        .arg(&work)
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let report = report(&ended);
    assert!(report["failures"][0].as_str().unwrap().starts_with("good: "), "{report}");
    for cell in report["cells"].as_array().unwrap() {
        assert!(cell["seconds"].is_null() && cell["failure"].is_string(), "{cell}");
    }
}
