//! The command `shaped-store`: a real server, its link and what has passed, for a program that
//! speaks lines of JSON.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
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

    /// The process ids of the servers that it runs.
    fn servers(&self) -> Vec<u32> {
        let pid = self.child.id();
        let mut servers = Vec::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let children = fs::read_to_string(thread.unwrap().path().join("children")).unwrap();
            servers.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        servers
    }

    /// Where the S3 server keeps its files.
    fn data(&self) -> String {
        let lines = self.servers().into_iter().map(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            line.split('\0').find_map(|word| word.strip_prefix("-dir=").map(str::to_owned))
        });
        lines.flatten().next().unwrap()
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
    let said = shaped.ask("link 5ms,8mbit 9");
    let link = json!({
        "link": "5ms,8mbit", "seed": 9, "latency_s": 0.005, "bytes_per_s": 1_000_000,
    });
    assert_eq!(said, link);
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

/// The head of the answer to a request, and its body.
fn http(address: &str, head: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(stream, "{head} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n").unwrap();
    write!(stream, "Content-Length: {length}\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let body = answer.split_off(end + 4);
    (String::from_utf8(answer).unwrap(), body)
}

static BLOB: [u8; 100_000] = [7; 100_000];
const BLOB_DIGEST: &str = "sha256:2c4b101169bf328cd4a882e640a8b57eb3acf76518b3d105869905cf629e791c";

/// Puts the blob into the registry at `address`, and gives the path where it is.
fn put_blob(address: &str) -> String {
    let (begun, _) = http(address, "POST /v2/some/blobs/uploads/", b"");
    let location = begun.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
    let path = location.trim().split_once(address).unwrap().1;
    let (put, _) = http(address, &format!("PUT {path}&digest={BLOB_DIGEST}"), &BLOB);
    assert!(put.starts_with("HTTP/1.1 201"), "{put}");
    format!("/v2/some/blobs/{BLOB_DIGEST}")
}

#[test]
fn the_registry_shares_the_link() {
    let mut shaped = Shaped::start(&["--registry"]);
    let address = |name: &str| shaped.greeting[name].as_str().unwrap().to_owned();
    let (registry, direct) = (address("registry"), address("registry_direct"));
    assert_ne!(registry, direct);
    let path = put_blob(&direct);
    let client = shaped.client();
    let key = Key::from("some/object");
    run(client.put(&key, PutPayload::from(BLOB.to_vec()))).unwrap();
    assert_eq!(shaped.ask("forget"), json!({ "forgotten": 1 }));

    // A tenth of a second each, if it were alone.
    shaped.ask("link 0ms,8mbit");
    let start = Instant::now();
    let pulled = thread::spawn(move || http(&registry, &format!("GET {path}"), b"").1);
    assert_eq!(run(client.get_range(&key, 0..100_000)).unwrap(), BLOB.as_slice());
    assert_eq!(pulled.join().unwrap(), BLOB);
    assert!(start.elapsed() >= Duration::from_millis(199));

    let stats = shaped.ask("stats");
    assert_eq!((&stats["requests"], &stats["bytes_down"]), (&json!(2), &json!(200_000)));
    let requests = shaped.ask("requests");
    let requests = requests["requests"].as_array().unwrap();
    let registry = |request: &&Value| request["path"].as_str().unwrap().starts_with("/v2/");
    assert_eq!((requests.len(), requests.iter().filter(registry).count()), (2, 1));
    assert_eq!(shaped.ask("forget"), json!({ "forgotten": 2 }));
}

#[test]
fn the_servers_files_are_warmed() {
    let mut shaped = Shaped::start(&["--registry"]);
    let bytes = |answer: Value| answer["warmed_bytes"].as_u64().unwrap();
    let before = bytes(shaped.ask("warm"));
    put_blob(shaped.greeting["registry_direct"].as_str().unwrap());
    let with_registry = bytes(shaped.ask("warm"));
    assert!(with_registry >= before + 100_000, "{before}, {with_registry}");
    let object = PutPayload::from(BLOB.to_vec());
    run(shaped.client().put(&Key::from("some/object"), object)).unwrap();
    let with_both = bytes(shaped.ask("warm"));
    assert!(with_both >= with_registry + 100_000, "{with_registry}, {with_both}");
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
        let mut shaped = Shaped::start(&["--registry"]);
        let (servers, data) = (shaped.servers(), shaped.data());
        assert!(servers.len() == 2 && Path::new(&data).is_dir());
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
