//! The API as its clients see it: requests with keys and deadlines, and callers that give up. They
//! need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;
#[path = "common/http.rs"]
mod http;

use std::fs;
use std::path::{Path, PathBuf};

use common::{import, local, of};
use http::{Answer, Asked, send};
use inlay_testkit::cli::Inlay;
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::process::Server;
use inlay_testkit::proxy::Proxy;
use inlay_testkit::scratch;
use inlay_testkit::weed::{BUCKET, Weed};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

const MOUNTS: &str = "/v1/mounts";

/// A daemon of its own, which stays until it is stopped.
struct Daemon {
    inlay: Inlay,
    server: Option<Server>,
    store: Option<String>,
    dir: TempDir,
}

impl Daemon {
    fn start(inlay: Inlay, store: Option<String>, variables: Vec<(String, String)>) -> Self {
        let mut daemon = Self { inlay, server: None, store, dir: scratch().unwrap() };
        let words = ["daemon", "--state", &daemon.inlay.state().display().to_string()];
        let program = PathBuf::from(daemon.inlay.command().get_program());
        let log = daemon.dir.path().join("log");
        let words = words.map(str::to_owned);
        daemon.server = Some(Server::start_with(&program, &words, &log, variables).unwrap());
        daemon.inlay.wait_for_daemon().unwrap();
        daemon
    }

    /// One with a snapshot `base` in the store inside its state.
    fn with_base() -> Self {
        let inlay = local();
        let tree = scratch().unwrap();
        fs::write(tree.path().join("file"), "x").unwrap();
        import(&inlay, &of("dir", tree.path()), "base");
        Self::start(inlay, None, Vec::new())
    }

    fn place(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn mount_request(&self, dir: &Path, view: &Value) -> Value {
        json!({
            "snapshot": "base", "store": { "url": self.store, "plain_http": false },
            "cache": "kept", "mountpoint": dir, "view": view, "deadline_ms": 60_000,
            "load": { "prefetch": "off", "record": "off" },
        })
    }

    fn send(&self, method: &str, headers: &[(&str, &str)], body: &Value) -> Asked {
        send(self.inlay.state(), method, MOUNTS, headers, body).unwrap()
    }

    fn mount(&self, dir: &Path, headers: &[(&str, &str)]) -> Answer {
        let request = self.mount_request(dir, &json!("read-only"));
        self.send("POST", headers, &request).answer().unwrap()
    }

    fn umount(&self, dir: &Path, headers: &[(&str, &str)]) -> Answer {
        let request = json!({ "mountpoint": dir, "how": "if-free", "changes": "stay" });
        self.send("DELETE", headers, &request).answer().unwrap()
    }

    fn mounted(&self) -> usize {
        self.send("GET", &[], &Value::Null).answer().unwrap().body.as_array().unwrap().len()
    }

    fn kill(&self) {
        let (pid, _) = self.inlay.daemon_pids().unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        inlay_testkit::wait::until("the daemon's end", || {
            !self.inlay.daemon_status().is_ok_and(|now| now["server"]["pid"] == pid.as_raw_pid())
        });
        self.inlay.wait_for_daemon().unwrap();
    }

    fn stop(self) {
        self.inlay.succeed(["daemon", "stop"]).unwrap();
        self.inlay.wait_until_quiet().unwrap();
        for dir in ["mounts", "attached", "upper"] {
            let Ok(entries) = fs::read_dir(self.inlay.state().join(dir)) else { continue };
            assert_eq!(entries.count(), 0, "{dir}");
        }
    }
}

#[test]
fn the_daemon_answers_as_its_openapi_document_says() {
    let daemon = Daemon::with_base();
    let ask = |method: &str, path: &str| {
        send(daemon.inlay.state(), method, path, &[], &Value::Null).unwrap().answer().unwrap()
    };
    let document = ask("GET", "/v1/openapi.json").body;
    let printed = daemon.inlay.succeed(["daemon", "openapi"]).unwrap();
    assert_eq!(document, serde_json::from_slice::<Value>(&printed.stdout).unwrap());
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.contains_key(MOUNTS));
    for (path, described) in paths {
        // No endpoint has this method: the answer says which it has.
        let refused = send(daemon.inlay.state(), "PATCH", path, &[], &Value::Null).unwrap().head();
        let (status, head) = refused.unwrap();
        assert_eq!(status, 405, "{path}");
        let allowed = head.lines().find_map(|line| line.strip_prefix("allow:")).unwrap();
        let mut allowed: Vec<&str> =
            allowed.split(',').map(str::trim).filter(|method| *method != "head").collect();
        allowed.sort_unstable();
        let described: Vec<&String> = described.as_object().unwrap().keys().collect();
        assert_eq!(allowed, described, "{path}");
    }
    assert_eq!(ask("GET", "/v1/none").body["kind"], "not-found");
    daemon.stop();
}

#[test]
fn a_request_with_a_key_is_carried_out_once() {
    let daemon = Daemon::with_base();
    let dir = daemon.place("mnt");
    let key = [("Idempotency-Key", "mount-1")];
    let first = daemon.mount(&dir, &key);
    assert_eq!(first.status, 200, "{first:?}");
    assert!(!first.headers.contains("idempotency-replayed"));
    let again = daemon.mount(&dir, &key);
    assert!(again.headers.contains("idempotency-replayed: true"), "{again:?}");
    assert_eq!((again.status, &again.body), (200, &first.body));
    // Without one, or with another, it is another request.
    for headers in [&[][..], &[("Idempotency-Key", "mount-2")]] {
        assert_eq!(daemon.mount(&dir, headers).status, 409);
    }
    assert_eq!(daemon.mount(&daemon.place("other"), &key).status, 422);
    // The next daemon knows it, too.
    daemon.kill();
    let again = daemon.mount(&dir, &key);
    assert_eq!((again.status, &again.body["mount"]), (200, &first.body["mount"]));
    assert_eq!(daemon.mounted(), 1);
    let gone = [("Idempotency-Key", "umount-1")];
    // A refusal changed nothing and is not remembered: the same request may succeed a moment later.
    assert_eq!(daemon.umount(&daemon.place("nothing"), &gone).status, 404);
    assert_eq!(daemon.umount(&dir, &gone).status, 200);
    assert_eq!(daemon.umount(&dir, &gone).status, 200);
    assert_eq!(daemon.umount(&dir, &[]).status, 404);
    let odd = daemon.mount(&dir, &[("Idempotency-Key", "a b")]);
    assert_eq!((odd.status, &odd.body["kind"]), (400, &json!("request")));
    let odd = daemon.mount(&dir, &[("Inlay-Deadline", "soon")]);
    assert_eq!(odd.status, 400);
    daemon.stop();
}

#[test]
fn an_answer_that_was_lost_is_not_a_mount_that_is_in_the_way() {
    let daemon = Daemon::with_base();
    let dir = daemon.place("mnt");
    let key = [("Idempotency-Key", "lost")];
    assert_eq!(daemon.mount(&dir, &key).status, 200);
    // As if the daemon had died between the mount and its answer.
    fs::remove_dir_all(daemon.inlay.state().join("answers")).unwrap();
    daemon.kill();
    let again = daemon.mount(&dir, &key);
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(daemon.mounted(), 1);
    assert_eq!(daemon.mount(&dir, &[("Idempotency-Key", "another")]).status, 409);
    assert_eq!(daemon.umount(&dir, &[]).status, 200);
    daemon.stop();
}

#[test]
fn callers_of_a_slow_mount_that_give_up_never_see_it() {
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let other = common::s3(proxy.address(), "slow");
    let tree = scratch().unwrap();
    fs::write(tree.path().join("file"), "x").unwrap();
    import(&other, &of("dir", tree.path()), "base");
    let store = Some(format!("s3://{BUCKET}/slow"));
    let variables = Weed::environment(proxy.address());
    let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value));
    let daemon = Daemon::start(local(), store, variables.collect());
    let asked = |dir: &Path, headers: &[(&str, &str)], view: &Value| {
        let before = proxy.requests("GET", "/names/").len();
        let asked = daemon.send("POST", headers, &daemon.mount_request(dir, view));
        inlay_testkit::wait::until("a request for the name", || {
            proxy.requests("GET", "/names/").len() != before
        });
        asked
    };
    for view in [json!("read-only"), json!({ "writable": "scratch" })] {
        proxy.inject(Rule::new(Fault::Stall).method("GET").path("/names/"));
        let (late, gone, key) = (daemon.place("late"), daemon.place("gone"), daemon.place("key"));
        // One whose time is over, one that goes away.
        // On a busy machine its time may be over before the store is asked.
        let soon = [("Inlay-Deadline", "50ms")];
        let late_one = daemon.send("POST", &soon, &daemon.mount_request(&late, &view));
        let answer = late_one.answer().unwrap();
        assert_eq!((answer.status, &answer.body["kind"]), (504, &json!("deadline")));
        drop(asked(&gone, &[], &view));
        // One that goes away and is asked for again: that one is the next one's.
        let header = [("Idempotency-Key", &*format!("again-{view}").replace([' ', '"'], ""))];
        let first = asked(&key, &header, &view);
        let second = daemon.send("POST", &header, &daemon.mount_request(&key, &view));
        drop(first);
        proxy.heal();
        let second = second.answer().unwrap();
        assert_eq!(second.status, 200, "{second:?}");
        assert_eq!(fs::read(key.join("file")).unwrap(), b"x");
        assert_eq!(daemon.umount(&key, &[]).status, 200);
        assert_eq!(daemon.mounted(), 0);
        for dir in [&late, &gone] {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        }
    }
    daemon.stop();
}

/// Values that a field of this schema can have, and others that it can't.
fn values(document: &Value, schema: &Value, random: &mut fastrand::Rng, depth: usize) -> Value {
    let odd = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(""),
        json!("a\u{0}b"),
        json!("../../x"),
        json!("/\u{1b}[31m"),
        json!("x".repeat(5000)),
        json!([]),
        json!({}),
        json!([[[]]]),
    ];
    if depth > 6 || random.u8(..8) == 0 {
        return odd[random.usize(..odd.len())].clone();
    }
    let depth = depth + 1;
    if let Some(name) = schema["$ref"].as_str() {
        let named = document.pointer(name.trim_start_matches('#')).unwrap();
        return values(document, named, random, depth);
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(several) = schema[several].as_array().filter(|several| !several.is_empty()) {
            let place = random.usize(..several.len());
            return values(document, &several[place], random, depth);
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        return words[random.usize(..words.len())].clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].clone(),
        kind => kind.clone(),
    };
    match kind.as_str() {
        Some("object") => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let fields = fields
                .map(|(name, schema)| (name.clone(), values(document, schema, random, depth)));
            Value::Object(fields.collect())
        }
        Some("array") => json!([values(document, &schema["items"], random, depth)]),
        // No number of a process that there is, and no long wait.
        Some("integer" | "number") => {
            json!([0, 3_999_999_999_u64, 4_000_000_000_u64][random.usize(..3)])
        }
        Some("boolean") => json!(random.bool()),
        _ => json!(["none", "/none/such", "b", "base:x", "1", "x=y"][random.usize(..6)]),
    }
}

/// No request of a client, however wrong, is a failure of the daemon.
#[test]
fn wrong_requests_are_their_clients_errors() {
    const EACH: usize = 12;
    let daemon = Daemon::with_base();
    let state = daemon.inlay.state();
    let document = send(state, "GET", "/v1/openapi.json", &[], &Value::Null).unwrap();
    let document = document.answer().unwrap().body;
    let mut random = fastrand::Rng::with_seed(23);
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if path == "/v1/stop" {
                continue;
            }
            let method = method.to_uppercase();
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            for round in 0..EACH {
                let word = ["none", "sb-000000000000", "%00", "%ff", "..%2f..", "a%20b", "%1b%5b"];
                // A right one goes on for as long as its client stays.
                if path == "/v1/traces" && round % 4 != 0 {
                    continue;
                }
                let place = word[random.usize(..word.len())];
                let mut path = path.replace("{sandbox}", place).replace("{trace}", place);
                if round % 3 == 1 {
                    path.push_str("?path=x&tail=-1&follow=maybe&since_ns=%ff&owners=nobody");
                }
                let body = match round % 4 {
                    _ if schema.is_null() => Value::Null,
                    0 => json!(["wrong"]),
                    _ => values(&document, schema, &mut random, 0),
                };
                let (status, head) = send(state, &method, &path, &[], &body)
                    .and_then(Asked::head)
                    .unwrap_or_else(|error| panic!("{method} {path} {body}: {error}"));
                // A caller that waits for nothing is told that its time is over.
                let is_fine = status < 500 || status == 504;
                assert!(is_fine, "{method} {path} {body}: {status} {head}");
                asked += 1;
            }
        }
    }
    assert!(asked > 200, "{asked}");
    daemon.stop();
}

#[test]
fn invalid_requests_are_refused_with_the_matching_status() {
    let daemon = Daemon::with_base();
    let state = daemon.inlay.state();
    let raw = |text: &[u8]| {
        use std::io::{Read as _, Write as _};
        let mut stream =
            std::os::unix::net::UnixStream::connect(state.join("run/daemon.sock")).unwrap();
        stream.set_read_timeout(Some(inlay_testkit::wait::SURELY)).unwrap();
        // It may be refused before all of it is sent.
        let _ = stream.write_all(text);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let head = "POST /v1/mounts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let json = "content-type: application/json\r\n";
    let long = " ".repeat(5 << 20);
    for (text, status) in [
        (format!("{head}{json}content-length: 1\r\n\r\n{{"), "400"),
        (format!("{head}content-length: 2\r\n\r\n{{}}"), "415"),
        (format!("{head}{json}content-length: {}\r\n\r\n{long}", long.len()), "413"),
        ("GET /v1/none HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), "404"),
        ("BREW /v1/mounts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), "405"),
        ("no HTTP at all\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = raw(text.as_bytes());
        let began: String = text.chars().take(120).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{began}: {answer}");
    }
    daemon.stop();
}
