//! Runs random scenarios; see `check.rs` for the invariants.

use std::sync::atomic::{AtomicU64, Ordering};

use inlay_prefetch_sim::{random_scenario, run};

/// Runs the scenarios of these seeds on all cores. Returns the number of events and of requests.
fn all(seeds: std::ops::Range<u64>) -> (u64, u64) {
    let (next, events, requests) =
        (AtomicU64::new(seeds.start), AtomicU64::new(0), AtomicU64::new(0));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(random_scenario(seed));
                    events.fetch_add(outcome.events, Ordering::Relaxed);
                    requests.fetch_add(outcome.requests, Ordering::Relaxed);
                }
            });
        }
    });
    (events.into_inner(), requests.into_inner())
}

#[test]
fn the_scheduler_keeps_its_promises() {
    let (events, requests) = all(0..2000);
    // Guards against scenarios that test nothing.
    assert!(events > 1_000_000 && requests > 40_000, "{events} events, {requests} requests");
}

/// Seeds outside the range that is always run that found a bug. 39865: groups displaced from the
/// queue were loaded with the rest although a new plan named them first.
const FOUND: &[u64] = &[39_865];

#[test]
fn seeds_that_failed_once_pass() {
    for seed in FOUND {
        run(random_scenario(*seed));
    }
}

/// Runs one scenario for debugging: `SEED=17 cargo test ... -- --ignored one_seed`.
#[test]
#[ignore = "for a seed that fails"]
fn one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    println!("{:?}", run(random_scenario(seed)));
}

#[test]
#[ignore = "takes minutes"]
fn the_scheduler_keeps_its_promises_in_many_more() {
    let (events, requests) = all(2000..102_000);
    println!("{events} events, {requests} requests");
}
