//! Recordings through the API: how many, for how long, and how much.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use inlay_testkit::cli::Inlay;
use serde_json::{Value, json};

use crate::ahead::{Remote, wait_for};
use crate::http;

/// A recording as any client may hold it: it lives as long as the connection.
struct Open {
    trace: String,
    _stream: BufReader<UnixStream>,
}

fn begin(host: &Inlay, body: &Value) -> Result<Open, String> {
    let mut stream = UnixStream::connect(host.state().join("run/daemon.sock")).unwrap();
    let body = body.to_string();
    // What is refused has no end of a line: the end of the connection is its end.
    let request = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: inlay\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut status = String::new();
    stream.read_line(&mut status).unwrap();
    let mut line = String::new();
    while !line.starts_with('{') {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "{status}");
        if let Some(at) = line.find('{') {
            line.drain(..at);
        }
    }
    if !status.contains(" 200 ") {
        return Err(status + &line);
    }
    let begun: Value = serde_json::from_str(&line).unwrap();
    Ok(Open { trace: begun["trace"].as_str().unwrap().to_owned(), _stream: stream })
}

fn end(host: &Inlay, trace: &str) -> (u16, Value) {
    let path = format!("/v1/traces/{trace}/end");
    let asked = http::send(host.state(), "POST", &path, &[], &json!({})).unwrap();
    let answer = asked.answer().unwrap();
    (answer.status, answer.body)
}

#[test]
fn a_recording_lives_as_long_as_its_client() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 4);
    let host = remote.host();
    let mounted = host.mount("image", &[]).unwrap();
    let all: Vec<Open> = (0..4).map(|_| begin(&host, &json!({})).unwrap()).collect();
    let refused = begin(&host, &json!({})).err().unwrap();
    assert!(refused.contains("503") && refused.contains("4 traces"), "{refused}");
    let names: Vec<String> = all.iter().map(|open| open.trace.clone()).collect();
    image.read(mounted.path(), 0);
    // Each has the same.
    let (status, events) = end(&host, &names[0]);
    assert_eq!((status, events["touches"].as_array().unwrap().len()), (200, 1));
    assert_eq!(end(&host, &names[0]).0, 404);
    drop(all);
    wait_for("the end of recordings whose clients have gone", || {
        // Four fit in again: none of the first is left.
        let again: Vec<_> = (0..4).map(|_| begin(&host, &json!({}))).collect();
        let ended = again.into_iter().flatten().map(|open| end(&host, &open.trace).0 == 200);
        ended.filter(|ended| *ended).count() == 4
    });
    assert!(names.iter().all(|name| end(&host, name).0 == 404));
    let open = begin(&host, &json!({})).unwrap();
    image.read(mounted.path(), 1);
    assert_eq!(end(&host, &open.trace).1["touches"].as_array().unwrap().len(), 1);
    mounted.unmount().unwrap();
    // Nothing keeps the daemon.
    host.wait_until_quiet().unwrap();
}

#[test]
fn events_that_find_no_room_are_counted() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 12);
    let host = remote.host();
    let mounted = host.mount("image", &[]).unwrap();
    let small = begin(&host, &json!({ "events": 5 })).unwrap();
    let large = begin(&host, &json!({})).unwrap();
    (0..12).for_each(|number| image.read(mounted.path(), number));
    let (_, large) = end(&host, &large.trace);
    let (_, small) = end(&host, &small.trace);
    let counted = |events: &Value| {
        let len = |name: &str| events[name].as_array().unwrap().len() as u64;
        (len("touches") + len("fetches"), events["dropped"].as_u64().unwrap())
    };
    assert_eq!(counted(&large), (24, 0));
    assert_eq!(counted(&small), (5, 19));
    for (body, status) in [
        (json!({ "events": 0 }), "400"),
        (json!({ "events": 500_000 }), "400"),
        (json!({ "snapshots": ["img-1"] }), "400"),
        (json!({ "snapshots": 1 }), "422"),
    ] {
        let refused = begin(&host, &body).err().unwrap();
        assert!(refused.contains(status), "{refused}");
    }
    assert_eq!(end(&host, "nothing").0, 404);
}

#[test]
fn a_daemon_tells_its_recorders_that_it_ends() {
    let remote = Remote::start();
    remote.import("image", "image", 1);
    let host = remote.host();
    let recorded = crate::recorded::Recorded::begin(&host, &[]);
    // A recording alone keeps the daemon.
    host.daemon_pids().unwrap();
    host.succeed(["daemon", "stop"]).unwrap();
    let said = recorded.ended();
    assert!(said.contains("the daemon has ended"), "{said}");
    host.wait_until_quiet().unwrap();
}
