//! One run: which groups were touched first, and when.

use std::collections::HashSet;
use std::time::Duration;

use super::model::ENTRIES_MAX;
use crate::format::GroupIdx;

/// The first time that a reader wanted bytes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The group.
    pub group: GroupIdx,
    /// How long after the snapshot was attached.
    pub at: Duration,
}

/// The touches of one run, in order, each group once.
///
/// Holds at most [`ENTRIES_MAX`] touches, the first ones: what is touched after so many others is no
/// part of a start.
#[derive(Debug, Clone, Default)]
pub struct Run {
    touches: Vec<Touch>,
    met: HashSet<GroupIdx>,
}

impl Run {
    /// A run that has not touched anything yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A run that touched `groups` one after another, a millisecond apart: an order that comes from
    /// elsewhere than a run.
    pub fn in_order(groups: impl IntoIterator<Item = GroupIdx>) -> Self {
        let mut run = Self::new();
        for group in groups {
            let at = Duration::from_millis(run.touches.len() as u64);
            run.record(Touch { group, at });
        }
        run
    }

    /// Adds a touch. Returns whether it is kept: a group that was touched before is not, and
    /// neither is what comes after [`ENTRIES_MAX`] others.
    ///
    /// Touches come in order. One that claims to be earlier than the last counts as simultaneous
    /// with it: threads may tell of theirs a little late.
    pub fn record(&mut self, touch: Touch) -> bool {
        if self.touches.len() >= ENTRIES_MAX || !self.met.insert(touch.group) {
            return false;
        }
        let at = self.touches.last().map_or(touch.at, |last| last.at.max(touch.at));
        self.touches.push(Touch { at, ..touch });
        true
    }

    /// All touches, in order.
    pub fn touches(&self) -> &[Touch] {
        &self.touches
    }

    /// How many groups were touched.
    pub fn len(&self) -> usize {
        self.touches.len()
    }

    /// Whether nothing was touched.
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
