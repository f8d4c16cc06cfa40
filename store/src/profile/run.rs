//! Records one run: which groups were touched first, and when.

use std::collections::HashMap;
use std::time::Duration;

use super::model::{ENTRIES_MAX, UnitSet};
use crate::format::GroupIdx;

/// A read of units of a group that the run had not touched before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The group.
    pub group: GroupIdx,
    /// The units read.
    pub units: UnitSet,
    /// Time since the snapshot was attached.
    pub at: Duration,
}

/// The groups that one run touched, in the order of their first touch, each with all its touched
/// units.
///
/// Holds only the first [`ENTRIES_MAX`] groups: later ones are not part of a start-up.
#[derive(Debug, Clone, Default)]
pub struct Run {
    touches: Vec<Touch>,
    /// The position of each group in `touches`.
    places: HashMap<GroupIdx, usize>,
}

impl Run {
    /// Creates a run without touches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a run that touches all of `groups` in order, one millisecond apart. For orders that do not
    /// come from a run.
    pub fn in_order(groups: impl IntoIterator<Item = GroupIdx>) -> Self {
        let mut run = Self::new();
        for group in groups {
            let at = Duration::from_millis(run.touches.len() as u64);
            run.record(Touch { group, units: UnitSet::ALL, at });
        }
        run
    }

    /// Records a touch. Returns false if it is dropped, because the run already has
    /// [`ENTRIES_MAX`] groups or the touch has no units.
    ///
    /// Touches arrive in order. A touch that claims to be earlier than the last counts as
    /// simultaneous with it, because threads may report slightly late.
    pub fn record(&mut self, touch: Touch) -> bool {
        if touch.units.is_empty() {
            return false;
        }
        if let Some(known) = self.places.get(&touch.group) {
            if let Some(known) = self.touches.get_mut(*known) {
                known.units = known.units.with(touch.units);
            }
            return true;
        }
        if self.touches.len() >= ENTRIES_MAX {
            return false;
        }
        self.places.insert(touch.group, self.touches.len());
        let at = self.touches.last().map_or(touch.at, |last| last.at.max(touch.at));
        self.touches.push(Touch { at, ..touch });
        true
    }

    /// Returns one touch for each group, in order.
    pub fn touches(&self) -> &[Touch] {
        &self.touches
    }

    /// Returns the number of groups touched.
    pub fn len(&self) -> usize {
        self.touches.len()
    }

    /// Returns whether no group was touched.
    pub fn is_empty(&self) -> bool {
        self.touches.is_empty()
    }
}

impl FromIterator<Touch> for Run {
    fn from_iter<I: IntoIterator<Item = Touch>>(touches: I) -> Self {
        let mut run = Self::new();
        for touch in touches {
            run.record(touch);
        }
        run
    }
}
