//! Generates random scenarios from a seed.

use std::sync::Arc;
use std::time::Duration;

use inlay_prefetch::FetchLimits;
use inlay_prefetch::scheduler::{Extent, Known, Plan, Urgency};

use crate::link::{Faults, LinkModel, Sharing, Weather};
use crate::scenario::{
    Begins, HostModel, Patience, Reader, Scenario, Snapshot, SnapshotScript, Stored, Told, Touch,
    Until,
};

/// Everything is attached within this time.
const ATTACHES_MS: u64 = 3000;

struct Dice(fastrand::Rng);

impl Dice {
    /// Returns true with probability `often`.
    fn is(&mut self, often: f64) -> bool {
        self.0.f64() < often
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.0.u64(0..most * 1000))
    }

    /// Draws log-uniformly from `least` to `most`.
    fn between(&mut self, least: f64, most: f64) -> f64 {
        (least.ln() + self.0.f64() * (most / least).ln()).exp()
    }
}

/// Returns the scenario of a seed.
pub fn scenario(seed: u64) -> Scenario {
    let mut dice = Dice(fastrand::Rng::with_seed(seed));
    let smooth = dice.is(0.5);
    let limits = limits(&mut dice);
    let link = link(&mut dice, smooth);
    let host = host(&mut dice, smooth);
    let snapshots = snapshots(&mut dice);
    let readers = (0..dice.0.usize(0..5)).map(|_| reader(&mut dice, &snapshots)).collect();
    let mut here = Vec::new();
    for (place, script) in snapshots.iter().enumerate().filter(|_| seed.is_multiple_of(3)) {
        let groups = script.snapshot.groups.len();
        here.extend((0..groups).filter(|_| dice.is(0.3)).map(|number| (place, small(number))));
    }
    Scenario { seed, limits, link, host, snapshots, readers, here, until: Until::Quiet }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap()
}

fn limits(dice: &mut Dice) -> FetchLimits {
    let limits = FetchLimits {
        decoders: dice.0.usize(1..5),
        ahead_workers: dice.0.usize(1..5),
        ..FetchLimits::default()
    };
    if dice.is(0.5) {
        return limits;
    }
    FetchLimits {
        demand_requests: dice.0.usize(1..8),
        ahead_requests: dice.0.usize(1..8),
        demand_bytes: dice.0.u64(1..16) << 20,
        ahead_bytes: dice.0.u64(1..16) << 20,
        read_ahead_queue: dice.0.usize(1..16),
        request_bytes: dice.0.u64(1..4096) << 10,
        gap_bytes: dice.0.u64(0..64) << 10,
        corrupt_retries: dice.0.u32(0..3),
        inserters: dice.0.usize(1..3),
        insert_backlog_bytes: dice.0.u64(1..16) << 20,
        ..limits
    }
}

fn link(dice: &mut Dice, smooth: bool) -> LinkModel {
    let faults = if smooth {
        Faults::default()
    } else {
        let often = dice.between(0.001, 0.3);
        Faults { errors: often, stalls: often / 20.0, cuts: often / 3.0 }
    };
    let mut weather = Vec::new();
    let mut from = Duration::ZERO;
    while dice.is(0.4) {
        from += dice.millis(3000);
        let (rate, latency) = (dice.between(0.1, 4.0), dice.between(0.5, 4.0));
        weather.push(Weather { from, rate, latency });
    }
    LinkModel {
        latency: Duration::from_secs_f64(dice.between(0.0003, 0.1)),
        jitter: dice.0.f64(),
        rate: dice.between(2e6, 1.25e9),
        sharing: if dice.is(0.5) { Sharing::Fair } else { Sharing::Fifo },
        faults,
        weather,
    }
}

fn host(dice: &mut Dice, smooth: bool) -> HostModel {
    let mut host = HostModel {
        decode: (Duration::from_micros(dice.0.u64(10..1000)), dice.between(1e8, 3e9)),
        insert: (Duration::from_micros(dice.0.u64(10..1000)), dice.between(5e7, 3e9)),
        look: Duration::from_micros(dice.0.u64(1..20_000)),
        ..HostModel::default()
    };
    if !smooth {
        host.corrupt = if dice.is(0.5) { dice.between(0.001, 0.2) } else { 0.0 };
        host.not_kept = if dice.is(0.3) { dice.between(0.001, 0.2) } else { 0.0 };
        while dice.is(0.3) {
            let from = dice.millis(ATTACHES_MS);
            host.full.push(from..from + dice.millis(10_000));
        }
    }
    host
}

/// Generates a few snapshots; some share groups or are identical.
fn snapshots(dice: &mut Dice) -> Vec<SnapshotScript> {
    let mut scripts: Vec<SnapshotScript> = Vec::new();
    for _ in 0..dice.0.usize(1..5) {
        let earlier = scripts.get(dice.0.usize(0..4)).map(|script| Arc::clone(&script.snapshot));
        let snapshot = match earlier {
            Some(same) if dice.is(0.2) => same,
            Some(parent) if dice.is(0.5) => child(dice, &parent),
            _ => Arc::new(Snapshot { groups: groups(dice), files: files(dice) }),
        };
        scripts.push(script(dice, snapshot));
    }
    scripts
}

fn groups(dice: &mut Dice) -> Vec<inlay_prefetch::GroupRef> {
    let mut stored = Vec::new();
    let (mut blob, mut offset) = (dice.0.u32(1..1_000_000), 0);
    let raw_max = dice.between(10_000.0, 4e6);
    let most = if dice.is(0.1) { 800 } else { 160 };
    for _ in 0..dice.0.usize(1..most) {
        if dice.is(0.02) {
            (blob, offset) = (dice.0.u32(1..1_000_000), 0);
        }
        let raw_len = dice.between(100.0, raw_max);
        let stored_len = raw_len * dice.between(0.1, 1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let (raw_len, stored_len) = (raw_len as u32, stored_len.max(1.0) as u32);
        stored.push(Stored { blob, offset, stored_len, raw_len });
        offset += u64::from(stored_len);
        if dice.is(0.05) {
            offset += dice.0.u64(0..100_000);
        }
    }
    Snapshot::new(&stored, Vec::new()).groups.clone()
}

/// Generates a few large files; some cover groups that do not exist.
fn files(dice: &mut Dice) -> Vec<std::ops::Range<u32>> {
    let starts = (0..dice.0.u32(0..4)).map(|place| place * 40 + dice.0.u32(0..20));
    let starts: Vec<u32> = starts.collect();
    starts.into_iter().map(|start| start..start + dice.0.u32(1..20)).collect()
}

/// Generates a snapshot that shares most groups with another.
fn child(dice: &mut Dice, parent: &Snapshot) -> Arc<Snapshot> {
    let mut all: Vec<_> = parent.groups.iter().copied().filter(|_| dice.is(0.8)).collect();
    all.extend(groups(dice).into_iter().take(20));
    if dice.is(0.3) {
        dice.0.shuffle(&mut all);
    }
    Arc::new(Snapshot { groups: all, files: Vec::new() })
}

fn script(dice: &mut Dice, snapshot: Arc<Snapshot>) -> SnapshotScript {
    let count = small(snapshot.groups.len());
    let attach = dice.is(0.9).then(|| dice.millis(ATTACHES_MS));
    let mut plans = Vec::new();
    let mut at = attach.unwrap_or_default();
    while plans.is_empty() || dice.is(0.1) {
        at += if dice.is(0.2) { dice.millis(4000) } else { dice.millis(100) };
        plans.push((at, plan(dice, count)));
    }
    if dice.is(0.05) {
        plans.clear();
    }
    let detach = attach.filter(|_| dice.is(0.25)).map(|at| at + dice.millis(2000));
    SnapshotScript {
        snapshot,
        urgency: if dice.is(0.5) { Urgency::Directory } else { Urgency::Image },
        attach,
        plans,
        detach,
        touches: if dice.is(0.9) { Told::Yes } else { Told::No },
    }
}

fn plan(dice: &mut Dice, groups: u32) -> Plan {
    let mut first = Vec::new();
    let few = dice.is(0.3);
    for _ in 0..dice.0.u32(0..=if few { 3 } else { groups }) {
        // Includes duplicates and groups that do not exist.
        first.push(dice.0.u32(0..groups + 2));
    }
    Plan {
        groups,
        first,
        known: if dice.is(0.5) { Known::Recorded } else { Known::Guessed },
        extent: match dice.0.u32(0..10) {
            0 => Extent::Nothing,
            1..=3 => Extent::Likely,
            _ => Extent::All,
        },
    }
}

fn reader(dice: &mut Dice, snapshots: &[SnapshotScript]) -> Reader {
    let snapshot = dice.0.usize(0..snapshots.len());
    let groups = small(snapshots[snapshot].snapshot.groups.len());
    let begins = snapshots[snapshot].attach.unwrap_or_default() + dice.millis(1000);
    let (jumps, thinks, hints) = (dice.0.f64() * 0.5, dice.0.u64(1..10), dice.is(0.4));
    let mut at = dice.0.u32(0..groups);
    let mut touches = Vec::new();
    for _ in 0..dice.0.usize(0..120) {
        at = if dice.is(jumps) { dice.0.u32(0..groups) } else { (at + 1) % groups };
        let several = if dice.is(0.2) { dice.0.u32(1..6) } else { 1 };
        let ahead = if hints { dice.0.u32(0..12) } else { 0 };
        touches.push(Touch {
            think: dice.millis(thinks),
            groups: (at..(at + several).min(groups)).collect(),
            hints: ((at + several).min(groups)..(at + several + ahead).min(groups)).collect(),
        });
    }
    let patience = if dice.is(0.4) {
        Patience::Some(dice.0.f64() * 0.3, dice.millis(300) + Duration::from_millis(1))
    } else {
        Patience::Endless
    };
    Reader { snapshot, begins: Begins::At(begins), touches, patience }
}
