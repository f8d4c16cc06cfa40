//! Merges a run into a profile. The documentation of the parent module explains the method.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::model::{ENTRIES_MAX, Entry, Profile, RUNS_MAX, Seen, Touched, UnitSet};
use super::run::Run;
use crate::format::GroupIdx;

/// The longest pause between two touches that counts; longer ones are cut to it.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The newest run has a weight of one in `MEAN_OF` in the mean, or one in the number of runs while
/// there are fewer.
const MEAN_OF: u32 = 4;
/// Added to the time of a touch before likelihoods are compared: about one round trip.
const ROUND_TRIP_MS: u64 = 50;
/// A group is forgotten if fewer than one in `FORGET_BELOW_ONE_IN` runs touched it…
const FORGET_BELOW_ONE_IN: u32 = 8;
/// …and none of the last `FORGET_AFTER` runs did.
const FORGET_AFTER: u32 = 8;
/// One run in this many forgets the units that only earlier runs touched.
const UNITS_OF: u32 = 8;

impl Profile {
    /// Merges a run. A run without touches is a no-op.
    ///
    /// The first run's order is kept unchanged. Merging the same run again preserves the order.
    pub fn merge(&mut self, run: &Run) {
        if run.is_empty() {
            return;
        }
        let paced = paced(run);
        let touched: HashMap<GroupIdx, u32> =
            paced.iter().map(|touch| (touch.group, touch.at_ms)).collect();
        let units: HashMap<GroupIdx, UnitSet> =
            paced.iter().map(|touch| (touch.group, touch.units)).collect();
        self.runs = (self.runs + 1).min(RUNS_MAX);
        self.merged = self.merged.wrapping_add(1);
        let forget_units = self.merged.is_multiple_of(UNITS_OF);
        let clocks = Clocks::compare(&self.entries, &touched, self.runs);
        for entry in &mut self.entries {
            let (at_ms, touched) = match touched.get(&entry.group) {
                Some(&at) => (clocks.mean(entry.at_ms, at), Touched::Yes),
                None => (clocks.moved(entry.at_ms), Touched::No),
            };
            let seen = entry.seen.then(touched);
            let units = match units.get(&entry.group) {
                None => entry.units,
                Some(units) if forget_units => *units,
                Some(units) => entry.units.with(*units),
            };
            *entry = Entry { at_ms, seen, units, ..*entry };
        }
        let known: HashSet<GroupIdx> = self.groups().collect();
        let new = paced.iter().filter(|touch| !known.contains(&touch.group));
        self.entries.extend(new.map(|touch| Entry {
            group: touch.group,
            at_ms: clocks.taken(touch.at_ms),
            seen: Seen::ONCE,
            units: touch.units,
        }));
        let runs = self.runs;
        self.entries.retain(|entry| {
            let rare = entry.seen.count() * FORGET_BELOW_ONE_IN < runs;
            !rare || entry.seen.age() < FORGET_AFTER
        });
        // The sort is stable: equal entries keep the order of the runs.
        self.entries.sort_by(sooner);
        self.entries.truncate(ENTRIES_MAX);
    }
}

/// A touch with its time since the first touch.
struct Paced {
    group: GroupIdx,
    units: UnitSet,
    at_ms: u32,
}

/// Returns each touch with its time in milliseconds since the first touch, with long pauses cut to
/// `PAUSE_MAX`.
fn paced(run: &Run) -> Vec<Paced> {
    let mut clock = Duration::ZERO;
    let mut last = None;
    let touches = run.touches().iter().map(|touch| {
        let pause = touch.at.saturating_sub(last.unwrap_or(touch.at));
        last = Some(touch.at);
        clock = clock.saturating_add(pause.min(PAUSE_MAX));
        let at_ms = u32::try_from(clock.as_millis()).unwrap_or(u32::MAX);
        Paced { group: touch.group, units: touch.units, at_ms }
    });
    touches.collect()
}

/// Compares `(t + 50 ms) / p`. Both shares `p` have the same number of runs as denominator, so it
/// cancels.
fn sooner(a: &Entry, b: &Entry) -> Ordering {
    let at = |entry: &Entry| u64::from(entry.at_ms) + ROUND_TRIP_MS;
    let seen = |entry: &Entry| u64::from(entry.seen.count());
    (at(a) * seen(b)).cmp(&(at(b) * seen(a)))
}

/// The ratio of the run's clock to the profile's: `run` units of the former pass while `own` units
/// of the latter pass.
struct Clocks {
    run: u128,
    own: u128,
    /// The new run has a weight of one in `mean_of` in the mean.
    mean_of: u128,
}

impl Clocks {
    /// Derives the ratio from the groups that both have. `runs` includes the new run.
    fn compare(entries: &[Entry], touched: &HashMap<GroupIdx, u32>, runs: u32) -> Self {
        // Add 1 to both, so that neither is zero.
        let mut ratios: Vec<(u64, u64)> = entries
            .iter()
            .filter_map(|entry| {
                let at = touched.get(&entry.group)?;
                Some((u64::from(*at) + 1, u64::from(entry.at_ms) + 1))
            })
            .collect();
        let middle = ratios.len() / 2;
        ratios.sort_unstable_by(|a, b| {
            (u128::from(a.0) * u128::from(b.1)).cmp(&(u128::from(b.0) * u128::from(a.1)))
        });
        let (run, own) = ratios.get(middle).copied().unwrap_or((1, 1));
        Self { run: run.into(), own: own.into(), mean_of: runs.clamp(1, MEAN_OF).into() }
    }

    /// Returns the weighted mean of a time of the profile and a time of the run.
    fn mean(&self, own: u32, run: u32) -> u32 {
        let sum = u128::from(own) * (self.mean_of - 1) + u128::from(run);
        millis(sum / self.mean_of)
    }

    /// Returns the merged time of a group that only the profile has, as if the run had touched it
    /// at the same position.
    fn moved(&self, own: u32) -> u32 {
        millis(u128::from(own) * self.step() / (self.mean_of * self.own))
    }

    /// Returns the merged time of a group that only the run has, on the profile's clock after the
    /// merge.
    fn taken(&self, run: u32) -> u32 {
        millis(u128::from(run) * self.step() / (self.mean_of * self.run))
    }

    /// Returns how far the mean of both clocks advances while `run` and `own` pass, times
    /// `mean_of`.
    fn step(&self) -> u128 {
        (self.mean_of - 1) * self.own + self.run
    }
}

fn millis(number: u128) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
