//! Clients of the daemon that are many, slow, silent or gone, and what they cannot do to others.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use inlay_testkit::cli::Inlay;
use inlay_testkit::scratch;
use inlay_testkit::wait;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};

use crate::boxes::Boxes;
use crate::http::send;

const IGNORES_TERM: &str = "trap '' TERM INT; echo up; while [ ! -e /end ]; do sleep 0.1; done";

fn boxes() -> Boxes {
    Boxes::new(Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap())
}

fn stubborn(host: &Boxes, name: &str) {
    let words = ["run", "--detach", "--name", name, "base", "--", "sh", "-c", IGNORES_TERM];
    host.succeed(&words);
    wait::until("the sandbox's program", || host.succeed(&["logs", name]).text().contains("up"));
}

/// Does `work` beside the test, which waits for its result with `in_time`.
fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (sender, result) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    result
}

fn in_time<T>(result: &mpsc::Receiver<T>, what: &str) -> T {
    let result = result.recv_timeout(wait::SURELY);
    result.unwrap_or_else(|error| panic!("waited in vain for {what}: {error}"))
}

/// Waits for the end of a command, and ends it if it does not come.
fn ended(mut child: Child, what: &str) -> i32 {
    let mut code = None;
    let pid = Pid::from_child(&child);
    wait::until_or(
        what,
        || {
            code = child.try_wait().unwrap();
            code.is_some()
        },
        || {
            let _ = kill_process(pid, Signal::KILL);
            String::new()
        },
    );
    code.unwrap().code().unwrap_or(-1)
}

#[test]
fn a_daemon_stop_that_is_given_up_changes_nothing() {
    let host = boxes();
    stubborn(&host, "a");
    let state = host.inlay.state();
    // Something under way that the daemon's end has to wait for.
    let stopping =
        send(state, "POST", "/v1/sandboxes/a/stop", &[], &json!({ "grace_ms": 300_000 })).unwrap();
    for if_mounted in ["refuse", "unmount"] {
        let stop = send(state, "POST", "/v1/stop", &[], &json!({ "if_mounted": if_mounted }));
        let live = json!({ "mountpoint": "/nowhere", "how": "if-free", "changes": "stay" });
        let asked = || {
            let asked = send(state, "DELETE", "/v1/mounts", &[], &live).unwrap().answer().unwrap();
            asked.body["kind"].clone()
        };
        wait::until("the daemon to be about to end", || asked() == "ending");
        drop(stop.unwrap());
        wait::until("the daemon to go on", || asked() != "ending");
    }
    host.create("b", &[]);
    host.succeed(&["exec", "a", "--", "touch", "/end"]);
    assert_eq!(stopping.answer().unwrap().status, 200);
    host.assert_clean("a stop that was given up");
}

/// Connections to a daemon, each with something sent.
fn connected(state: &Path, count: usize, sent: impl Fn(usize) -> String) -> Vec<UnixStream> {
    let connect = |number| {
        let mut stream = UnixStream::connect(state.join("run/daemon.sock")).unwrap();
        stream.set_read_timeout(Some(wait::SURELY)).unwrap();
        stream.write_all(sent(number).as_bytes()).unwrap();
        stream
    };
    (0..count).map(connect).collect()
}

fn post(path: &str, body: &str) -> String {
    let head = "HTTP/1.1\r\nhost: inlay\r\ncontent-type: application/json";
    format!("POST {path} {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The longest time that a control request took, of several.
fn slowest_control_request(state: &Path) -> Duration {
    let ask = |path: &&str| {
        let began = Instant::now();
        let answer = send(state, "GET", path, &[], &Value::Null).unwrap();
        assert_eq!(answer.head().unwrap().0, 200, "{path}");
        began.elapsed()
    };
    let paths = ["/v1/status", "/metrics", "/v1/sandboxes/b"];
    (0..5).flat_map(|_| paths.iter().map(ask).collect::<Vec<_>>()).max().unwrap()
}

#[test]
fn control_requests_are_answered_whatever_other_clients_do() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let host = boxes();
    stubborn(&host, "a");
    host.create("b", &[]);
    let mount = host.path("mnt");
    fs::create_dir(&mount).unwrap();
    host.succeed(&["mount", "data", mount.to_str().unwrap()]);
    let state = host.inlay.state();
    let streams = connected(state, 1000, |_| {
        "GET /v1/sandboxes/a/logs?follow=1 HTTP/1.1\r\nhost: inlay\r\n\r\n".to_owned()
    });
    for stream in &streams {
        let mut first = String::new();
        BufReader::new(stream).read_line(&mut first).unwrap();
        assert!(first.contains("200"), "{first}");
    }
    let polls = connected(state, 500, |number| match number % 2 {
        0 => post("/v1/sandboxes/a/wait", "{\"deadline_ms\":60000}"),
        _ => post("/v1/mounts/gone", "{\"mount\":1,\"deadline_ms\":60000}"),
    });
    let silent = connected(state, 500, |number| {
        let whole = post("/v1/mounts", "{}");
        let sent = match number % 3 {
            0 => "",
            1 => whole.get(..20).unwrap(),
            _ => whole.strip_suffix('}').unwrap(),
        };
        sent.to_owned()
    });
    let slowest = slowest_control_request(state);
    println!("the slowest of 15 control requests took {slowest:?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    assert_eq!(host.sh("b", "echo hello"), "hello\n");
    host.succeed(&["umount", mount.to_str().unwrap()]);
    // Silent clients are sent away.
    for (number, stream) in silent.iter().enumerate() {
        let mut rest = Vec::new();
        match (&*stream).read_to_end(&mut rest) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => {}
        }
        // Those whose body is not whole are told why.
        let text = String::from_utf8_lossy(&rest);
        assert!(number % 3 != 2 || text.starts_with("HTTP/1.1 408 "), "{number}: {text}");
    }
    drop((streams, polls, silent));
    host.succeed(&["exec", "a", "--", "touch", "/end"]);
    host.assert_clean("many clients");
}

#[test]
fn stopping_the_daemon_by_force_stops_all_sandboxes_together() {
    let host = boxes();
    let names: Vec<String> = (0..8).map(|number| format!("s{number}")).collect();
    for name in &names {
        stubborn(&host, name);
    }
    // Each takes its 10 s: one after the other, they would take 80 s.
    let began = Instant::now();
    host.succeed(&["daemon", "stop", "--force"]);
    let took = began.elapsed();
    assert!(took < Duration::from_mins(1), "{took:?}");
    for sandbox in host.sandboxes() {
        assert_eq!(sandbox["state"], "stopped", "{sandbox}");
    }
    host.assert_clean("a stop by force");
}

#[test]
fn background_processes_hold_no_descriptors_of_the_caller() {
    let host = boxes();
    let lock = host.path("lock");
    let script = "exec 7>\"$1\"; flock 7; exec 8>&1; shift; exec \"$@\"";
    let inlay = host.inlay.command();
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&lock).arg(inlay.get_program());
    command.args(["run", "--detach", "--name", "a", "base", "--", "sleep", "1000"]);
    for (name, value) in inlay.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut command = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = command.stdout.take().unwrap();
    let end = beside(move || pipe.read_to_end(&mut Vec::new()));
    assert_eq!(ended(command, "the command"), 0);
    let read = end.recv_timeout(wait::SURELY);
    assert!(read.is_ok(), "a process in the background holds the caller's pipe");
    let lock = File::open(lock).unwrap();
    let taken = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    assert!(taken.is_ok(), "a process in the background holds the caller's lock");
    // They do live.
    assert_eq!(host.sh("a", "echo hello"), "hello\n");
    host.assert_clean("a caller's descriptors");
}

#[test]
fn a_program_that_is_run_ends_with_its_own_end() {
    let host = boxes();
    host.create("a", &[]);
    let script = "(while :; do echo more; sleep 0.05; done) & dd if=/dev/zero bs=1M count=3 2>/dev/null; echo last; exit 3";
    let mut command = host.inlay.command();
    command.args(["exec", "a", "--", "sh", "-c", script]).stdout(Stdio::piped());
    let mut command = command.spawn().unwrap();
    let mut pipe = command.stdout.take().unwrap();
    let reading = beside(move || {
        let mut all = Vec::new();
        // Slowly: what it has printed itself comes all the same.
        thread::sleep(Duration::from_secs(1));
        pipe.read_to_end(&mut all).map(|_| all)
    });
    assert_eq!(ended(command, "exec, whose program has left something in the background"), 3);
    let all = in_time(&reading, "the end of its output").unwrap();
    assert!(all.len() > 3 << 20, "{}", all.len());
    assert!(all.windows(5).any(|piece| piece == b"last\n"));
    host.assert_clean("a program in the background");
}

#[test]
fn signals_end_a_command_whatever_its_pipes_do() {
    let host = boxes();
    host.create("a", &[]);
    let left = |what: &str| {
        let script =
            "n=0; for p in /proc/[0-9]*; do grep -q \"$1\" $p/cmdline && n=$((n+1)); done; echo $n";
        let count = || host.succeed(&["exec", "a", "--", "sh", "-c", script, "sh", what]).text();
        // The shell that counts has the words, too.
        wait::until("the program to be told", || count() == "1\n");
    };
    for (signal, program) in [(Signal::INT, "12341"), (Signal::TERM, "12342")] {
        // One whose program reads nothing of an endless input.
        let mut command = host.inlay.command();
        command.args(["exec", "-i", "a", "--", "sleep", program]);
        let zero = File::open("/dev/zero").unwrap();
        let command = command.stdin(Stdio::from(zero)).spawn().unwrap();
        wait::until("the program", || {
            let words = ["exec", "a", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline"];
            host.run(&words).text().contains(&format!("sleep\0{program}"))
        });
        kill_process(Pid::from_child(&command), signal).unwrap();
        assert_eq!(ended(command, "exec with a full stdin"), 128 + signal.as_raw());
        left(&format!("sleep.{program}"));
    }
    // One whose output nobody reads.
    let mut command = host.inlay.command();
    command.args(["exec", "a", "--", "sh", "-c", "while :; do echo endless; done"]);
    let mut command = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = command.stdout.take().unwrap();
    let reading = beside(move || {
        let read = pipe.read_exact(&mut [0; 8]);
        (pipe, read)
    });
    let (pipe, read) = in_time(&reading, "the first output");
    read.unwrap();
    // Until nothing moves any more.
    thread::sleep(Duration::from_secs(1));
    kill_process(Pid::from_child(&command), Signal::INT).unwrap();
    assert_eq!(ended(command, "exec with a full stdout"), 130);
    drop(pipe);
    left("do echo endless");
    host.assert_clean("signals");
}

#[test]
fn command_lines_are_as_long_as_the_kernel_allows() {
    let host = boxes();
    host.create("a", &[]);
    let word = "x".repeat(120_000);
    let run = |words: &[&str], count: usize, word: &str| {
        let script = ["--", "sh", "-c", "echo $#", "sh"];
        let words: Vec<&str> =
            words.iter().copied().chain(script).chain(std::iter::repeat_n(word, count)).collect();
        host.run(&words)
    };
    for (count, word) in [(14, word.as_str()), (20_000, "y")] {
        for words in [&["exec", "a"][..], &["run", "--rm", "base"]] {
            let ran = run(words, count, word);
            assert_eq!(ran.text(), format!("{count}\n"), "{}", ran.stderr);
        }
    }
    // What no command line can hold is refused with the reason.
    for (words, why) in
        [(vec!["x".repeat(200_000)], "200000"), (vec![word; 30], "the kernel takes")]
    {
        let command = [vec!["echo".to_owned()], words].concat();
        let request = json!({ "command": command });
        let asked = send(host.inlay.state(), "POST", "/v1/sandboxes/a/exec", &[], &request);
        let answer = asked.unwrap().answer().unwrap();
        assert!(answer.status == 400 || answer.status == 426, "{answer:?}");
        let request = json!({ "command": request["command"], "output": "discard" });
        let asked = send(host.inlay.state(), "POST", "/v1/sandboxes/a/exec", &[], &request);
        let answer = asked.unwrap().answer().unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.to_string().contains(why), "{answer:?}");
    }
    host.assert_clean("long commands");
}

#[test]
fn a_group_reaches_the_socket_and_nothing_else_and_only_as_long_as_it_may() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let state = dir.path().join("state");
    let inlay = Inlay::with_state(env!("CARGO_BIN_EXE_inlay"), dir, state.clone());
    let source = scratch().unwrap();
    fs::write(source.path().join("file"), "x").unwrap();
    let from = format!("dir:{}", source.path().display());
    inlay.succeed(["import", &from, "--name", "base"]).unwrap();
    let may = |test: &str, path: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "12345", "--clear-groups", "test", test]);
        command.arg(state.join(path)).status().unwrap().success()
    };
    for (words, opened) in [(&["--socket-group", "12345"][..], true), (&[], false)] {
        let mut command = inlay.command();
        let daemon = command.arg("daemon").args(words).stderr(Stdio::null()).spawn().unwrap();
        inlay.wait_for_daemon().unwrap();
        assert_eq!(may("-w", "run/daemon.sock"), opened);
        for (test, path) in [("-r", ""), ("-r", "run"), ("-x", "store"), ("-r", "store/names")] {
            assert!(!may(test, path), "{test} {path:?} with {words:?}");
        }
        assert_eq!(may("-x", "run"), opened);
        inlay.succeed(["daemon", "stop"]).unwrap();
        assert_eq!(ended(daemon, "the daemon"), 0);
        inlay.wait_until_quiet().unwrap();
    }
}
