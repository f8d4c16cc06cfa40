//! Work of eight clients on one host for a long time, after which it is as it was before.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::plan::{CLIENTS, History};
use crate::{from_environment, run};

/// Clients that work at the same time.
const SOAKING: usize = 8;
/// Minutes, unless `INLAY_SOAK_MINUTES` says how many.
const MINUTES: u64 = 30;
/// Work before the first look, in which tables and pools get their sizes.
const WARM_UP: Duration = Duration::from_mins(1);
/// Memory that the daemon may have more than at the first look: allocators keep some.
const MORE_MEMORY: u64 = 48 << 20;
/// Descriptors that may be open more than at the first look: those of a connection that ends late.
const MORE_DESCRIPTORS: usize = 8;

/// What must not grow.
#[derive(Debug)]
struct Gauges {
    descriptors: usize,
    threads: usize,
    memory: u64,
    keeper_descriptors: usize,
    /// Files and directories of the state, without caches, indexes, logs and traces.
    files: BTreeMap<&'static str, usize>,
    mounts: usize,
    /// Names of the store that the outbox remembers, each in a file, and names that there are.
    seen: usize,
    names: usize,
}

impl Gauges {
    fn of(host: &Host) -> Self {
        let status = host.json(&["daemon", "status"]).unwrap();
        let daemon = status["server"]["pid"].as_u64().unwrap();
        let keeper = status["keeper"].as_u64().unwrap();
        let count = |path: String| fs::read_dir(path).unwrap().count();
        let kept = ["mounts", "attached", "upper", "sandboxes", "outbox", "tmp", "trash"];
        let seen = host.seen_names().unwrap();
        let mut files: BTreeMap<_, _> =
            kept.into_iter().map(|dir| (dir, host.files_below(dir))).collect();
        files.entry("outbox").and_modify(|count| *count -= seen);
        let names = host.json(&["snapshots"]).unwrap();
        let names = names.as_array().unwrap().iter().map(|one| one["names"].as_array().unwrap());
        Self {
            descriptors: count(format!("/proc/{daemon}/fd")),
            threads: count(format!("/proc/{daemon}/task")),
            memory: resident(daemon),
            keeper_descriptors: count(format!("/proc/{keeper}/fd")),
            files,
            mounts: host.mounts().unwrap().len(),
            seen,
            names: names.map(Vec::len).sum(),
        }
    }
}

fn resident(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "takes half an hour: scripts/soak"]
fn a_host_is_after_a_soak_as_it_was_before() {
    let minutes = from_environment("INLAY_SOAK_MINUTES", MINUTES);
    let host = Host::new().unwrap();
    // Something is mounted all the time: the daemon must not end in between.
    host.inlay(&["sandbox", "create", "base", "--name", "stays"]).unwrap();
    let (next, played) = (AtomicU64::new(1), AtomicU64::new(0));
    soak(&host, WARM_UP, &next, &played);
    let before = Gauges::of(&host);
    soak(&host, Duration::from_mins(minutes), &next, &played);
    let after = Gauges::of(&host);
    println!("{} histories\nbefore {before:?}\nafter  {after:?}", played.load(Ordering::Relaxed));
    assert!(after.descriptors <= before.descriptors + MORE_DESCRIPTORS, "{before:?} {after:?}");
    assert!(after.keeper_descriptors <= before.keeper_descriptors, "{before:?} {after:?}");
    assert!(after.threads <= before.threads + MORE_DESCRIPTORS, "{before:?} {after:?}");
    assert!(after.memory <= before.memory + MORE_MEMORY, "{before:?} {after:?}");
    assert_eq!((&after.files, after.mounts), (&before.files, before.mounts));
    // What the outbox remembers grows with the store's names only.
    assert!(after.seen <= after.names, "{after:?}");
    host.inlay(&["sandbox", "rm", "--force", "stays"]).unwrap();
}

/// Plays histories without faults, as many at a time as there are clients for.
fn soak(host: &Host, time: Duration, next: &AtomicU64, played: &AtomicU64) {
    let end = Instant::now() + time;
    thread::scope(|scope| {
        for _ in 0..SOAKING / CLIENTS {
            scope.spawn(|| {
                while Instant::now() < end {
                    let mut history = History::of(next.fetch_add(1, Ordering::Relaxed));
                    history.rounds.iter_mut().for_each(|round| round.fault = None);
                    if let Err(what) = run::play(host, &history, 0) {
                        panic!("{history}{what}\n{}", host.log());
                    }
                    played.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    // What was sealed last is on its way, and slots are given up a moment after their mounts.
    host.inlay(&["sync"]).unwrap();
    thread::sleep(Duration::from_secs(10));
}
