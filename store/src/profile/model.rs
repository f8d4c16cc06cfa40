//! A profile: what earlier runs touched, in the order in which to fetch it.

use super::label::ProfileLabel;
use super::run::Run;
use crate::format::GroupIdx;
use crate::ids::SnapshotId;

/// The most groups that a profile or a run holds.
pub const ENTRIES_MAX: usize = 65_536;
/// How many runs a profile remembers.
pub const RUNS_MAX: u32 = u16::BITS;

/// In which of the remembered runs a group was touched: bit 0 is the last run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen(pub(super) u16);

impl Seen {
    /// In the last run alone.
    pub(super) const ONCE: Self = Self(1);

    /// One run further on.
    pub(super) fn then(self, touched: Touched) -> Self {
        Self(self.0 << 1 | u16::from(touched == Touched::Yes))
    }

    /// In how many runs.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// How many runs have passed since the last one that touched it.
    pub(super) fn age(self) -> u32 {
        self.0.trailing_zeros()
    }
}

/// Whether a run touched a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    Yes,
    No,
}

/// A group of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The group. The index may have fewer: see [`Profile::retain_groups`].
    pub group: GroupIdx,
    /// The mean time of its first touch, in milliseconds on the profile's own clock, which begins at
    /// a run's first touch and skips long pauses.
    pub at_ms: u32,
    /// In which runs it was touched: in one of them at least.
    pub seen: Seen,
}

/// The order in which to fetch a snapshot's groups, learned from runs.
///
/// Each group stands in it once; at most [`ENTRIES_MAX`] do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Whose groups these are.
    pub snapshot: SnapshotId,
    /// Of which use of it.
    pub label: ProfileLabel,
    pub(super) runs: u32,
    pub(super) entries: Vec<Entry>,
}

impl Profile {
    /// A profile without runs.
    pub fn new(snapshot: SnapshotId, label: ProfileLabel) -> Self {
        Self { snapshot, label, runs: 0, entries: Vec::new() }
    }

    /// The profile of one run.
    pub fn of_run(snapshot: SnapshotId, label: ProfileLabel, run: &Run) -> Self {
        let mut profile = Self::new(snapshot, label);
        profile.merge(run);
        profile
    }

    /// How many runs it remembers: at most [`RUNS_MAX`], however many there were.
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// What to fetch, in this order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The groups to fetch, in this order.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = GroupIdx> + '_ {
        self.entries.iter().map(|entry| entry.group)
    }

    /// Drops what an index of `group_count` groups does not have, and returns how many entries that
    /// were. To be called with a profile from a store before its groups are looked up.
    pub fn retain_groups(&mut self, group_count: u32) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.group.0 < group_count);
        before - self.entries.len()
    }
}
