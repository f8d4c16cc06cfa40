//! A profile: the groups that earlier runs touched, in the order in which to fetch them.

use std::ops::Range;

use super::label::ProfileLabel;
use super::run::Run;
use crate::format::GroupIdx;
use crate::ids::SnapshotId;
use crate::unit::{UnitIdx, unit_count};

/// The maximum number of groups in a profile or a run.
pub const ENTRIES_MAX: usize = 65_536;
/// The number of runs that a profile remembers.
pub const RUNS_MAX: u32 = u16::BITS;

/// The remembered runs that touched a group, as a bit set: bit 0 is the last run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen(pub(super) u16);

impl Seen {
    /// Only the last run.
    pub(super) const ONCE: Self = Self(1);

    /// Shifts the set by one run, and records whether that run touched the group.
    pub(super) fn then(self, touched: Touched) -> Self {
        Self(self.0 << 1 | u16::from(touched == Touched::Yes))
    }

    /// Returns the number of runs.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Returns the number of runs since the last touch.
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

/// Units of a group, as a bit set. Bit 15 stands for all units from 15 on, which only groups of
/// more than 960 KiB have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct UnitSet(pub(super) u16);

impl UnitSet {
    /// All units of a group of any length.
    pub const ALL: Self = Self(u16::MAX);

    /// Returns the units that hold the decoded bytes `range` of a group; none if it is empty.
    pub fn of(range: Range<u32>) -> Self {
        if range.is_empty() {
            return Self::default();
        }
        let bit = |offset| UnitIdx::at(offset).0.min(u16::BITS - 1);
        let (first, last) = (bit(range.start), bit(range.end - 1));
        Self(u16::MAX << first & u16::MAX >> (u16::BITS - 1 - last))
    }

    /// Returns the set with the bits of [`Self::bits`].
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Returns the set as bits: bit 0 is the first unit.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Reports whether it has no units.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Reports whether it has all units of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the units of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns its units in a group of `raw_len` decoded bytes, in order.
    pub fn units(self, raw_len: u32) -> impl Iterator<Item = UnitIdx> {
        let bit = move |unit: u32| self.0 & 1 << unit.min(u16::BITS - 1) != 0;
        (0..unit_count(raw_len)).filter(move |unit| bit(*unit)).map(UnitIdx)
    }
}

/// A group of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The group. The index may not have it: see [`Profile::retain_groups`].
    pub group: GroupIdx,
    /// The mean time of the first touch, in milliseconds on the profile's own clock, which starts
    /// at a run's first touch and skips long pauses.
    pub at_ms: u32,
    /// The runs that touched it; never empty.
    pub seen: Seen,
    /// The units that were touched; never empty.
    pub units: UnitSet,
}

/// The order in which to fetch a snapshot's groups, learned from runs.
///
/// Contains each group at most once, and at most [`ENTRIES_MAX`] groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The snapshot that the groups belong to.
    pub snapshot: SnapshotId,
    /// The use of the snapshot.
    pub label: ProfileLabel,
    pub(super) runs: u32,
    /// The number of all runs merged so far, modulo 2³².
    pub(super) merged: u32,
    pub(super) entries: Vec<Entry>,
}

impl Profile {
    /// Creates a profile without runs.
    pub fn new(snapshot: SnapshotId, label: ProfileLabel) -> Self {
        Self { snapshot, label, runs: 0, merged: 0, entries: Vec::new() }
    }

    /// Creates a profile from one run.
    pub fn of_run(snapshot: SnapshotId, label: ProfileLabel, run: &Run) -> Self {
        let mut profile = Self::new(snapshot, label);
        profile.merge(run);
        profile
    }

    /// Returns the number of remembered runs: at most [`RUNS_MAX`].
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// Returns the entries, in the order in which to fetch them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Iterates over the groups, in the order in which to fetch them.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = GroupIdx> + '_ {
        self.entries.iter().map(|entry| entry.group)
    }

    /// Removes entries that an index of `group_count` groups does not have, and returns their
    /// number. Callers must do this with a profile from a store before they look up its groups.
    pub fn retain_groups(&mut self, group_count: u32) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.group.0 < group_count);
        before - self.entries.len()
    }
}
