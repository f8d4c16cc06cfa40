//! Records one run: which groups were touched first, and when.

use std::collections::HashSet;
use std::time::Duration;

use super::model::ENTRIES_MAX;
use crate::format::GroupIdx;

/// The first read of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The group.
    pub group: GroupIdx,
    /// Time since the snapshot was attached.
    pub at: Duration,
}

/// The touches of one run, in order, each group once.
///
/// Holds only the first [`ENTRIES_MAX`] touches: later ones are not part of a start-up.
#[derive(Debug, Clone, Default)]
pub struct Run {
    touches: Vec<Touch>,
    met: HashSet<GroupIdx>,
}

impl Run {
    /// Creates a run without touches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a run that touches `groups` in order, one millisecond apart. For orders that do not
    /// come from a run.
    pub fn in_order(groups: impl IntoIterator<Item = GroupIdx>) -> Self {
        let mut run = Self::new();
        for group in groups {
            let at = Duration::from_millis(run.touches.len() as u64);
            run.record(Touch { group, at });
        }
        run
    }

    /// Records a touch. Returns false if it is dropped, because the group was touched before or the
    /// run already has [`ENTRIES_MAX`] touches.
    ///
    /// Touches arrive in order. A touch that claims to be earlier than the last counts as
    /// simultaneous with it, because threads may report slightly late.
    pub fn record(&mut self, touch: Touch) -> bool {
        if self.touches.len() >= ENTRIES_MAX || !self.met.insert(touch.group) {
            return false;
        }
        let at = self.touches.last().map_or(touch.at, |last| last.at.max(touch.at));
        self.touches.push(Touch { at, ..touch });
        true
    }

    /// Returns all touches, in order.
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
