//! Snapshots that are sealed on this host, and what becomes of them.

use std::fs;
use std::net::SocketAddr;

use inlay_testkit::cli::{Inlay, Ran};
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::weed::{BUCKET, Weed};
use serde_json::Value;

use crate::boxes::Boxes;

fn inlay() -> Inlay {
    Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap()
}

/// A host whose store is reached at this address.
fn through(address: SocketAddr) -> Inlay {
    inlay()
        .with_environment(Weed::environment(address))
        .with_environment([("INLAY_STORE", format!("s3://{BUCKET}/sealed"))])
}

fn id(taken: &Value) -> &str {
    taken["id"].as_str().unwrap()
}

fn refused(boxes: &Boxes, words: &[&str]) -> (Ran, Value) {
    let ran = boxes.run(&[words, &["--json"]].concat());
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let answer = serde_json::from_slice(&ran.stdout).unwrap();
    (ran, answer)
}

#[test]
fn sealing_asks_nothing_of_the_store() {
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let boxes = Boxes::new(through(proxy.address()));
    boxes.create("a", &[]);
    boxes.create("b", &[]);
    boxes.sh("a", "mkdir /work; dd if=/dev/urandom of=/work/big bs=64k count=4; echo 1 > /work/n");
    proxy.inject(Rule::new(Fault::Status(503)));
    let seal = |words: &[&str]| {
        let taken = boxes.json(&[&["snapshot", "a:/work", "--wait", "sealed"], words].concat());
        assert_eq!(taken["durable"], false);
        taken
    };
    let first = seal(&["--name", "work"]);
    boxes.sh("a", "echo 2 > /work/n");
    let second = seal(&["--name", "work"]);
    let third = seal(&["--label", "k=v"]);
    assert_eq!((id(&third), &third["unchanged"]), (id(&second), &true.into()));
    assert_ne!(id(&first), id(&second));
    // Here they are at once, by id and by name.
    boxes.succeed(&["mount", "work", "b:/work"]);
    boxes.succeed(&["mount", id(&first), "b:/first"]);
    assert_eq!(boxes.sh("b", "cat /work/n /first/n"), "2\n1\n");
    assert_eq!(boxes.cat("work:/n"), "2\n");
    assert!(boxes.succeed(&["ls", &format!("{}:/", id(&first))]).text().contains("big"));
    let listed = boxes.run(&["snapshots", "--json"]);
    assert!(listed.stderr.contains("only those sealed on this host"), "{listed:?}");
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    let (_, answer) = refused(&boxes, &["sync", "--time", "1s"]);
    assert_eq!(answer["waiting"], 3, "{answer}");
    proxy.heal();
    boxes.succeed(&["sync"]);
    for snapshot in [id(&first), "work"] {
        boxes.succeed(&["verify", snapshot]);
    }
    let shown = boxes.json(&["show", "work"]);
    assert_eq!((id(&shown), &shown["labels"]["k"]), (id(&second), &"v".into()));
    // What the last one holds is known without asking.
    proxy.inject(Rule::new(Fault::Status(503)));
    boxes.sh("a", "echo 3 > /work/n");
    let fourth = boxes.json(&["snapshot", "a:/work", "--wait", "sealed"]);
    assert!(fourth["stored_bytes"].as_u64().unwrap() < 10_000, "{fourth}");
    proxy.heal();
    boxes.succeed(&["sync"]);
    boxes.assert_clean("sealed");
}

#[test]
fn a_late_snapshot_does_not_move_its_name_backwards() {
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let boxes = Boxes::new(through(proxy.address()));
    let other = through(weed.address());
    boxes.create("a", &[]);
    boxes.sh("a", "mkdir /work; echo 1 > /work/n");
    proxy.inject(Rule::new(Fault::Status(503)).path("names/"));
    let taken = boxes.json(&["snapshot", "a:/work", "--wait", "sealed", "--name", "work"]);
    other.succeed(["tag", "data", "work"]).unwrap();
    proxy.heal();
    let (ran, answer) = refused(&boxes, &["sync"]);
    assert!(ran.stderr.contains("1 names were not moved"), "{ran:?}");
    let conflict = &answer["name_conflicts"][0];
    assert_eq!((&conflict["name"], &conflict["snapshot"]), (&"work".into(), &taken["id"]));
    let data = boxes.json(&["show", "data"]);
    assert_eq!(boxes.json(&["show", "work"])["id"], data["id"]);
    assert_eq!(boxes.cat(&format!("{}:/n", id(&taken))), "1\n");
    boxes.succeed(&["verify", id(&taken)]);
    // Until someone decides what the name stands for.
    let text = boxes.run(&["sync"]).text();
    assert!(text.contains("inlay tag"), "{text}");
    boxes.succeed(&["tag", id(&taken), "work"]);
    boxes.succeed(&["sync"]);
    // Two of this host: the later one counts, whatever is shipped first.
    for number in ["2", "3"] {
        boxes.sh("a", &format!("echo {number} > /work/n"));
        boxes.succeed(&["snapshot", "a:/work", "--wait", "sealed", "--name", "work"]);
    }
    boxes.succeed(&["sync"]);
    assert_eq!(boxes.cat("work:/n"), "3\n");
    boxes.assert_clean("names");
}

#[test]
fn a_damaged_outbox_is_kept_and_reported() {
    let boxes = Boxes::new(inlay());
    let outbox = boxes.inlay.state().join("outbox").join("0".repeat(64));
    let blob = outbox.join("objects/blobs/00/x");
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, "data").unwrap();
    let file = outbox.join("store.json");
    for text in ["", "{", r#"{"version":99}"#] {
        fs::write(&file, text).unwrap();
        let (ran, answer) = refused(&boxes, &["sync"]);
        assert!(ran.stderr.contains("1 files are damaged"), "{ran:?}");
        assert_eq!(answer["damaged"][0]["path"], file.to_str().unwrap());
        boxes.create("a", &[]);
        let status = boxes.json(&["daemon", "status"]);
        assert_eq!(status["outbox"]["damaged"].as_array().unwrap().len(), 1, "{status}");
        boxes.succeed(&["sandbox", "rm", "--force", "a"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(fs::read(&blob).unwrap(), b"data");
    }
    fs::remove_dir_all(&outbox).unwrap();
    boxes.succeed(&["sync"]);
    boxes.assert_clean("damaged");
}

#[test]
fn labels_and_a_longer_time_to_live_are_added_to_an_unchanged_snapshot() {
    let boxes = Boxes::new(inlay());
    boxes.create("a", &[]);
    boxes.sh("a", "mkdir /work; echo 1 > /work/n");
    let first = boxes.json(&["snapshot", "a:/work", "--label", "one=1", "--label", "two=1"]);
    for wait in ["durable", "sealed"] {
        let words = ["snapshot", "a:/work", "--label", "two=2", "--label", wait, "--wait", wait];
        let again = boxes.json(&[&words[..], &["--ttl", "1000h"]].concat());
        assert_eq!((id(&again), &again["unchanged"]), (id(&first), &true.into()));
        assert_eq!((&again["labels"]["two"], &again["ttl_s"]), (&"2".into(), &3_600_000.into()));
        boxes.succeed(&["sync"]);
        let shown = boxes.json(&["show", id(&first)]);
        assert_eq!((&shown["labels"]["one"], &shown["ttl_s"]), (&"1".into(), &3_600_000.into()));
        assert_eq!(shown["labels"][wait], again["labels"][wait]);
    }
    // It is never shortened, and the answer says so.
    let text = boxes.succeed(&["snapshot", "a:/work", "--ttl", "1h"]).text();
    assert!(text.contains("is only extended"), "{text}");
    assert_eq!(boxes.json(&["show", id(&first)])["ttl_s"], 3_600_000);
    // An import of an unchanged tree adds labels, too.
    let source = format!("dir:{}", boxes.path("data").display());
    let words = ["import", &source, "--kind", "directory", "--label", "k=v"];
    assert_eq!(id(&boxes.json(&words)), id(&boxes.json(&["show", "data"])));
    assert_eq!(boxes.json(&["show", "data"])["labels"]["k"], "v");
    boxes.assert_clean("labels");
}
