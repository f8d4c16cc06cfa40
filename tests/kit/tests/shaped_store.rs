//! The command `shaped-store`: a real server, its link and what has passed, for a program that
//! speaks lines of JSON.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt as _, PutPayload};
use serde_json::{Value, json};

struct Shaped {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    greeting: Value,
}

impl Shaped {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shaped-store"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let greeting = read_line(&mut output);
        Self { child, input, output, greeting }
    }

    fn ask(&mut self, line: &str) -> Value {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
        read_line(&mut self.output)
    }

    fn client(&self) -> AmazonS3 {
        let environment = self.greeting["environment"].as_object().unwrap();
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(self.greeting["bucket"].as_str().unwrap())
            .with_allow_http(true);
        for (name, value) in environment {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value.as_str().unwrap());
            }
        }
        builder.build().unwrap()
    }

    /// The process ids of the server that it runs.
    fn servers(&self) -> Vec<u32> {
        let pid = self.child.id();
        let mut servers = Vec::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let children = fs::read_to_string(thread.unwrap().path().join("children")).unwrap();
            servers.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        servers
    }

    /// Where the server keeps its files.
    fn data(&self) -> String {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", self.servers()[0])).unwrap();
        line.split('\0').find_map(|word| word.strip_prefix("-dir=")).unwrap().to_owned()
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn read_line(output: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_program_can_use_shape_and_count() {
    let mut shaped = Shaped::start(&["--link", "20ms,none", "--seed", "5"]);
    assert_eq!(shaped.greeting["link"], "20ms,none");
    let direct = shaped.greeting["direct"].as_str().unwrap();
    assert_ne!(direct, shaped.greeting["endpoint"].as_str().unwrap());
    assert_eq!(shaped.greeting["endpoint"], shaped.greeting["environment"]["AWS_ENDPOINT_URL"]);

    let client = shaped.client();
    let key = Key::from("some/object");
    run(client.put(&key, PutPayload::from(vec![7; 200_000]))).unwrap();
    let uploaded = shaped.ask("stats");
    assert_eq!((&uploaded["requests"], &uploaded["bytes_up"]), (&json!(1), &json!(200_000)));

    assert_eq!(shaped.ask("forget"), json!({ "forgotten": 1 }));
    assert_eq!(shaped.ask("link 5ms,8mbit 9"), json!({ "link": "5ms,8mbit", "seed": 9 }));
    let start = Instant::now();
    assert_eq!(run(client.get_range(&key, 100..100_100)).unwrap(), vec![7; 100_000]);
    assert!(start.elapsed() >= Duration::from_millis(99));

    let stats = shaped.ask("stats");
    assert_eq!((&stats["requests"], &stats["bytes_down"]), (&json!(1), &json!(100_000)));
    assert_eq!(stats["most_at_once"], 1);
    let requests = shaped.ask("requests");
    let request = &requests["requests"][0];
    assert_eq!(requests["requests"].as_array().unwrap().len(), 1);
    assert_eq!((&request["method"], &request["status"]), (&json!("GET"), &json!(206)));
    assert_eq!(request["path"], "/inlay-test/some/object");
    assert_eq!(request["range"], "bytes=100-100099");
    assert_eq!((&request["bytes_down"], &request["bytes_up"]), (&json!(100_000), &json!(0)));
    let at = request["at_ms"].as_f64().unwrap();
    assert!(request["first_byte_ms"].as_f64().unwrap() >= at + 4.4);
    assert_eq!((&stats["first_at_ms"], &stats["last_at_ms"]), (&json!(at), &json!(at)));

    assert!(shaped.ask("link moon")["error"].as_str().unwrap().contains("moon"));
    assert!(shaped.ask("what").get("error").is_some());
    assert_eq!(shaped.ask("quit"), json!({ "quit": true }));
    assert!(shaped.child.wait().unwrap().success());
}

#[derive(Clone, Copy, Debug)]
enum End {
    Quit,
    InputCloses,
    Terminated,
}

#[test]
fn it_leaves_nothing_behind_however_it_ends() {
    for end in [End::Quit, End::InputCloses, End::Terminated] {
        let mut shaped = Shaped::start(&[]);
        let (servers, data) = (shaped.servers(), shaped.data());
        assert!(!servers.is_empty() && Path::new(&data).is_dir());
        match end {
            End::Quit => drop(shaped.ask("quit")),
            End::InputCloses => drop(shaped.input.take()),
            End::Terminated => {
                let pid = rustix::process::Pid::from_child(&shaped.child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            }
        }
        assert!(shaped.child.wait().unwrap().success(), "{end:?}");
        assert!(!Path::new(&data).exists(), "{end:?}: {data}");
        for pid in servers {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{end:?}: {pid}");
        }
    }
}

#[test]
fn a_wrong_link_is_refused_at_once() {
    let output = Command::new(env!("CARGO_BIN_EXE_shaped-store"))
        .args(["--link", "moon"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not a link"));
}
