//! Random histories of several clients and faults, compared with a model of what must exist.
//!
//! `scripts/histories [COUNT] [SEED]` plays many; a failure is shrunk to a short history. They need
//! root, /dev/fuse, runc or crun, mkfs.ext4 and busybox-static.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends at the first surprise"
)]

mod action;
mod failure;
mod host;
mod model;
mod outcome;
mod plan;
mod run;
mod soak;
mod verify;

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use host::Host;
use plan::History;

/// Histories that are played unless `INLAY_HISTORIES` says how many.
const COUNT: u64 = 200;
/// The first seed, unless `INLAY_HISTORIES_SEED` says which.
const SEED: u64 = 1;
/// Histories that are played at the same time: most of each is waiting.
const AT_A_TIME: usize = 3;
/// Histories that a host plays before the next host takes over.
const PER_HOST: u32 = 12;
/// Attempts to make a failing history shorter.
const SHRINKS: u32 = 60;
/// How often a shorter history is tried until it counts as good: what fails depends on timing.
const TRIES: u32 = 3;

fn from_environment(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn histories_end_as_their_model_says() {
    let count = from_environment("INLAY_HISTORIES", COUNT);
    let first = from_environment("INLAY_HISTORIES_SEED", SEED);
    let next = AtomicU64::new(first);
    let began = Instant::now();
    let found: Vec<_> = thread::scope(|scope| {
        let lanes: Vec<_> =
            (0..AT_A_TIME).map(|_| scope.spawn(|| lane(&next, first + count))).collect();
        lanes.into_iter().filter_map(|lane| lane.join().unwrap()).collect()
    });
    println!("{count} histories from seed {first} took {:.0?}", began.elapsed());
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}

/// Plays a history on a host that has no other sandboxes; nothing of them may be left.
fn play_alone(host: &Host, history: &History, number: u32) -> Result<(), String> {
    run::play(host, history, number)?;
    let left = host.left_of_sandboxes();
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// Plays histories until there are none left or one fails; tells what was found.
fn lane(next: &AtomicU64, end: u64) -> Option<String> {
    let mut host = Host::new().unwrap();
    let mut played = 0;
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return None;
        }
        if played >= PER_HOST {
            host = Host::new().unwrap();
            played = 0;
        }
        played += 1;
        let history = History::of(seed);
        if let Err(what) = play_alone(&host, &history, played) {
            let log = host.log();
            // The others end soon, too.
            next.store(end, Ordering::Relaxed);
            drop(host);
            let (history, what, log) = shrink(history, what, log);
            return Some(format!("{history}{what}\n{log}"));
        }
    }
}

/// Makes a failing history shorter as long as it fails.
fn shrink(mut history: History, mut what: String, mut log: String) -> (History, String, String) {
    if env::var_os("INLAY_HISTORIES_KEEP").is_some() {
        return (history, what, log);
    }
    let mut tries = 0;
    'shorter: loop {
        for smaller in history.smaller() {
            if tries >= SHRINKS {
                break 'shorter;
            }
            tries += 1;
            let failed = (0..TRIES).find_map(|_| {
                let host = Host::new().unwrap();
                play_alone(&host, &smaller, 0).err().map(|what| (what, host.log()))
            });
            if let Some((why, end)) = failed {
                (history, what, log) = (smaller, why, end);
                continue 'shorter;
            }
        }
        break;
    }
    (history, what, log)
}
