//! Compares policies: starts of recorded traces, and reads concurrent with prefetching.

use std::sync::Arc;
use std::time::Duration;

use inlay_prefetch::FetchLimits;
use inlay_prefetch::scheduler::{Extent, Known, Plan, Urgency};

use crate::link::{Faults, LinkModel, Sharing};
use crate::scenario::{
    Begins, HostModel, Patience, Reader, Scenario, Snapshot, SnapshotScript, Stored, Told, Touch,
    Until,
};
use crate::trace::Trace;
use crate::world::{SimulationOutcome, run};

/// Links: name, latency in milliseconds, rate in bytes per second.
const LINKS: [(&str, u64, f64); 3] =
    [("zone", 2, 1.25e9), ("region", 20, 250e6), ("wan", 50, 25e6)];

/// Prefetch policy of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Fetch on demand only.
    None,
    /// Prefetch everything in tree order, regardless of reads.
    Tree,
    /// The same, but the start waits until everything is cached.
    Whole,
    /// The scheduler without a profile.
    Cold,
    /// The scheduler with a noisy profile, and with an exact one.
    Noisy,
    Profile,
}

const POLICIES: [(&str, Policy); 6] = [
    ("none", Policy::None),
    ("tree", Policy::Tree),
    ("whole", Policy::Whole),
    ("cold", Policy::Cold),
    ("noisy", Policy::Noisy),
    ("profile", Policy::Profile),
];

fn link(latency: u64, rate: f64, sharing: Sharing) -> LinkModel {
    LinkModel {
        latency: Duration::from_millis(latency),
        jitter: 0.1,
        rate,
        sharing,
        faults: Faults::default(),
        weather: Vec::new(),
    }
}

/// Creates a scenario with a host that is never the bottleneck: only the link matters.
fn scenario(link: LinkModel, seed: u64) -> Scenario {
    Scenario {
        seed,
        limits: FetchLimits { decoders: 16, ahead_workers: 16, ..FetchLimits::default() },
        link,
        host: HostModel::default(),
        snapshots: Vec::new(),
        readers: Vec::new(),
        here: Vec::new(),
        until: Until::Read,
    }
}

fn script(snapshot: Arc<Snapshot>, urgency: Urgency, plan: Plan) -> SnapshotScript {
    SnapshotScript {
        snapshot,
        urgency,
        attach: Some(Duration::ZERO),
        plans: vec![(Duration::from_millis(1), plan)],
        detach: None,
        touches: Told::Yes,
    }
}

/// Returns the order of a trace with a tenth missing, a tenth wrong, and neighbours swapped.
fn noisy(trace: &Trace) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(3);
    let count = u32::try_from(trace.groups.len()).unwrap();
    let mut first = Vec::new();
    for (_, group) in &trace.touches {
        if rng.f64() >= 0.1 {
            first.push(*group);
        }
        if rng.f64() < 0.1 {
            first.push(rng.u32(0..count));
        }
    }
    for place in 0..first.len() {
        let other = (place + rng.usize(0..8)).min(first.len() - 1);
        first.swap(place, other);
    }
    first
}

fn start(trace: &Trace, link: LinkModel, policy: Policy) -> SimulationOutcome {
    let snapshot = Snapshot::new(&trace.groups, trace.files.clone());
    let order = || trace.touches.iter().map(|(_, group)| *group).collect();
    let (first, known) = match policy {
        Policy::None | Policy::Tree | Policy::Whole => (Vec::new(), Known::Recorded),
        Policy::Cold => (Vec::new(), Known::Guessed),
        Policy::Noisy => (noisy(trace), Known::Recorded),
        Policy::Profile => (order(), Known::Recorded),
    };
    let groups = u32::try_from(trace.groups.len()).unwrap();
    let plan = Plan { groups, first, known, extent: Extent::All };
    let mut image = script(snapshot, Urgency::Image, plan);
    if policy == Policy::None {
        image.attach = None;
    }
    if matches!(policy, Policy::Tree | Policy::Whole) {
        image.touches = Told::No;
    }
    let touches = trace.touches.iter().map(|(think, group)| Touch {
        think: *think,
        groups: vec![*group],
        hints: Vec::new(),
    });
    let begins = match policy {
        Policy::Whole => Begins::WhenWhole,
        _ => Begins::At(Duration::from_millis(1)),
    };
    let reader =
        Reader { snapshot: 0, begins, touches: touches.collect(), patience: Patience::Endless };
    run(Scenario { snapshots: vec![image], readers: vec![reader], ..scenario(link, 7) })
}

/// Returns the earliest possible end of a start: everything is requested at once, in the order in
/// which it is needed, and arrives at link speed.
#[allow(clippy::cast_precision_loss)]
fn ideal(trace: &Trace, link: &LinkModel) -> Duration {
    let (mut at, mut bytes) = (Duration::ZERO, 0);
    for (think, group) in &trace.touches {
        bytes += u64::from(trace.groups[*group as usize].stored_len);
        let here = link.latency + Duration::from_secs_f64(bytes as f64 / link.rate);
        at = (at + *think).max(here);
    }
    at
}

/// Prints the tables.
#[allow(clippy::cast_precision_loss)]
pub fn print(traces: &[(String, Trace)]) {
    println!(
        "Starts: time until the last touch is answered (and how many times the ideal), MB fetched"
    );
    println!("until then, requests for readers + ahead of them. Answers share the link fairly.\n");
    println!(
        "{:<12} {:<7} {:<8} {:>8} {:>6} {:>7} {:>11}",
        "trace", "link", "policy", "s", "x", "MB", "requests"
    );
    for (name, trace) in traces {
        for (place, latency, rate) in LINKS {
            let model = link(latency, rate, Sharing::Fair);
            let ideal = ideal(trace, &model);
            let megabytes = trace.needed() as f64 / 1e6;
            println!(
                "{name:<12} {place:<7} {:<8} {:>8.3} {:>6} {megabytes:>7.1}",
                "ideal",
                ideal.as_secs_f64(),
                ""
            );
            for (policy_name, policy) in POLICIES {
                let outcome = start(trace, model.clone(), policy);
                let took = outcome.done[0].as_secs_f64();
                println!(
                    "{:<12} {:<7} {policy_name:<8} {took:>8.3} {:>6.2} {:>7.1} {:>5}+{:<5}",
                    "",
                    "",
                    took / ideal.as_secs_f64(),
                    outcome.passed as f64 / 1e6,
                    outcome.demands,
                    outcome.requests - outcome.demands
                );
            }
        }
    }
    beside();
}

/// Creates an image large enough to keep a link busy, with typical group sizes.
fn large(blob: u32, count: u32) -> Arc<Snapshot> {
    let mut rng = fastrand::Rng::with_seed(u64::from(blob));
    let mut offset = 0;
    let mut groups = Vec::new();
    for _ in 0..count {
        let stored_len = rng.u32(60_000..300_000);
        groups.push(Stored { blob, offset, stored_len, raw_len: 524_288 });
        offset += u64::from(stored_len);
    }
    Snapshot::new(&groups, Vec::new())
}

/// Loads an image with all groups named first: a start that needs everything.
fn load(snapshot: Arc<Snapshot>) -> SnapshotScript {
    let groups = u32::try_from(snapshot.groups.len()).unwrap();
    let plan =
        Plan { groups, first: (0..groups).collect(), known: Known::Recorded, extent: Extent::All };
    script(snapshot, Urgency::Image, plan)
}

fn quantile(waits: &[Duration], part: f64) -> f64 {
    let mut waits = waits.to_vec();
    waits.sort_unstable();
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let place = ((waits.len() as f64 * part) as usize).min(waits.len().saturating_sub(1));
    waits.get(place).map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
}

/// Measures reads of one snapshot while another is loaded.
#[allow(clippy::cast_precision_loss)]
fn beside() {
    println!(
        "\nReads that are not cached, of one group each, 300 of them, alone and while an image is loaded:"
    );
    println!(
        "ms, and how many times what they take alone; and how much of the link is used meanwhile.\n"
    );
    println!(
        "{:<7} {:<6} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7} {:>9}",
        "link", "shared", "p50", "p50 with", "p99", "p99 with", "x", "in use", "dir x"
    );
    for (name, latency, rate) in LINKS {
        for (how, sharing) in [("fair", Sharing::Fair), ("fifo", Sharing::Fifo)] {
            let model = link(latency, rate, sharing);
            let alone = reads(&model, Beside::Nothing);
            let with = reads(&model, Beside::Image);
            let (before, after) = (&alone.waits[0], &with.waits[0]);
            let use_of_link = in_use(&model);
            let first = |beside| quantile(&directory(&model, beside).waits[0], 0.5);
            println!(
                "{name:<7} {how:<6} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>6.2} {:>6.1}% {:>9.2}",
                quantile(before, 0.5),
                quantile(after, 0.5),
                quantile(before, 0.99),
                quantile(after, 0.99),
                quantile(after, 0.99) / quantile(before, 0.99),
                use_of_link * 100.0,
                first(Beside::Image) / first(Beside::Nothing),
            );
        }
    }
}

/// Concurrent load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Image,
}

/// Returns the number of groups that keep a link busy for about `seconds`.
fn enough(link: &LinkModel, seconds: f64) -> u32 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let groups = (link.rate * seconds / 180_000.0) as u32;
    groups.max(100)
}

fn reads(link: &LinkModel, beside: Beside) -> SimulationOutcome {
    let other = large(1, 2000);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut order: Vec<u32> = (0..2000).collect();
    rng.shuffle(&mut order);
    let touches = order.into_iter().take(300).map(|group| Touch {
        think: Duration::from_micros(rng.u64(1000..20_000)),
        groups: vec![group],
        hints: Vec::new(),
    });
    let touches = touches.collect();
    let begins = Begins::At(Duration::from_secs(1));
    let reader = Reader { snapshot: 0, begins, touches, patience: Patience::Endless };
    let mut read = load(other);
    read.attach = None;
    let mut snapshots = vec![read];
    if beside == Beside::Image {
        let each = link.latency.as_secs_f64() * 2.5 + 0.015 + 400_000.0 / link.rate;
        snapshots.push(load(large(2, enough(link, each * 300.0 + 2.0))));
    }
    run(Scenario { snapshots, readers: vec![reader], ..scenario(link.clone(), 9) })
}

/// Returns the link utilization while an image is loaded for five seconds without readers.
#[allow(clippy::cast_precision_loss)]
fn in_use(link: &LinkModel) -> f64 {
    let image = load(large(2, enough(link, 5.0)));
    let outcome =
        run(Scenario { snapshots: vec![image], until: Until::Quiet, ..scenario(link.clone(), 9) });
    outcome.passed as f64 / (outcome.end.as_secs_f64() * link.rate)
}

/// Mounts a directory of 40 groups while an image is loaded, and reads its first files.
fn directory(link: &LinkModel, beside: Beside) -> SimulationOutcome {
    let small = large(1, 40);
    let plan = Plan { groups: 40, first: Vec::new(), known: Known::Guessed, extent: Extent::All };
    let mut mounted = script(small, Urgency::Directory, plan);
    let at = Duration::from_secs(2);
    (mounted.attach, mounted.plans[0].0) = (Some(at), at + Duration::from_millis(1));
    let touches = [0, 7, 3, 21, 30].map(|group| Touch {
        think: Duration::from_millis(1),
        groups: vec![group],
        hints: Vec::new(),
    });
    let reader = Reader {
        snapshot: 0,
        begins: Begins::At(at),
        touches: touches.to_vec(),
        patience: Patience::Endless,
    };
    let mut snapshots = vec![mounted];
    if beside == Beside::Image {
        snapshots.push(load(large(2, enough(link, 4.0))));
    }
    run(Scenario { snapshots, readers: vec![reader], ..scenario(link.clone(), 9) })
}
