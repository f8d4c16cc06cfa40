//! Many sandboxes at once, and what each costs. Not for CI: `scripts/many-sandboxes [COUNT]`.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::boxes::Boxes;
use crate::common::local;

/// How many clients there are at a time.
const CLIENTS: usize = 8;
/// How many of the sandboxes have a disk of their own, as a share of all.
const ONE_WITH_A_DISK_OF: usize = 10;

/// Does something for each number below `count`, by some clients at once; gives how long each took,
/// sorted.
fn by_clients(count: usize, work: impl Fn(usize) + Sync) -> Vec<Duration> {
    let next = AtomicUsize::new(0);
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut took = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return took;
                        }
                        let begun = Instant::now();
                        work(number);
                        took.push(begun.elapsed());
                    }
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    took.sort_unstable();
    took
}

fn report(what: &str, took: &[Duration]) {
    let at = |share: usize| took[(took.len() - 1) * share / 100].as_millis();
    println!("{what}: p50 {} ms, p90 {} ms, max {} ms", at(50), at(90), at(100));
}

/// What processes take, as proc(5) counts it.
#[derive(Debug, Default)]
struct Cost {
    processes: usize,
    descriptors: usize,
    threads: usize,
    /// Memory in KiB, shared pages divided among who shares them.
    pss: u64,
}

impl Cost {
    fn add(&mut self, pid: &str) {
        self.processes += 1;
        let count =
            |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).map_or(0, Iterator::count);
        self.descriptors += count("fd");
        self.threads += count("task");
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        self.pss += line
            .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or_default();
    }
}

/// The daemon and the monitors of a state.
fn costs(boxes: &Boxes) -> (Cost, Cost) {
    let (daemon, _) = boxes.inlay.daemon_pids().unwrap();
    let state = boxes.inlay.state().to_str().unwrap();
    let (mut of_daemon, mut of_monitors) = (Cost::default(), Cost::default());
    of_daemon.add(&daemon.as_raw_nonzero().to_string());
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        if words.split('\0').nth(1) == Some("monitor") && words.contains(state) {
            of_monitors.add(process.file_name().to_str().unwrap());
        }
    }
    (of_daemon, of_monitors)
}

#[test]
#[ignore = "takes minutes and much of the host: scripts/many-sandboxes"]
fn many_sandboxes_run_at_once() {
    let count = std::env::var("INLAY_MANY").map_or(100, |text| text.parse().unwrap());
    let boxes = Boxes::new(local());
    boxes.create("first", &[]);
    let (before, _) = costs(&boxes);
    let name = |number: usize| format!("many-{number}");

    let made = by_clients(count, |number| {
        let disk: &[&str] =
            if number.is_multiple_of(ONE_WITH_A_DISK_OF) { &["--disk", "32M"] } else { &[] };
        boxes.create(&name(number), disk);
    });
    report("create", &made);
    let (daemon, monitors) = costs(&boxes);
    println!("before: {before:?}");
    println!("daemon: {daemon:?}");
    println!("monitors: {monitors:?}");
    assert_eq!(monitors.processes, count + 1);

    let ran = by_clients(count, |number| {
        let sandbox = name(number);
        assert_eq!(boxes.sh(&sandbox, "echo $HOSTNAME > /own; cat /own").len(), 16);
    });
    report("exec", &ran);
    let mounted = by_clients(count, |number| {
        let at = format!("{}:/data", name(number));
        boxes.succeed(&["mount", "data", &at]);
        assert_eq!(boxes.sh(&name(number), "cat /data/file"), "x");
    });
    report("mount and exec", &mounted);
    let listed = Instant::now();
    assert_eq!(boxes.sandboxes().len(), count + 1);
    println!("ls: {} ms", listed.elapsed().as_millis());

    // The next daemon finds all of them.
    boxes.kill_daemon();
    let begun = Instant::now();
    assert_eq!(boxes.sandboxes().len(), count + 1);
    println!("the next daemon: {} ms", begun.elapsed().as_millis());
    let seen = by_clients(count, |number| {
        assert_eq!(boxes.sh(&name(number), "cat /data/file"), "x");
    });
    report("exec by the next daemon", &seen);

    let stopped = by_clients(count / 2, |number| {
        boxes.succeed(&["sandbox", "stop", &name(number)]);
    });
    report("stop", &stopped);
    let removed = by_clients(count, |number| {
        boxes.succeed(&["sandbox", "rm", "--force", &name(number)]);
    });
    report("rm", &removed);
    let (after, monitors) = costs(&boxes);
    println!("after: {after:?}");
    assert_eq!(monitors.processes, 1);
    let spare = 16;
    assert!(after.descriptors <= before.descriptors + spare, "{before:?} {after:?}");
    boxes.assert_clean("many sandboxes");
}
