//! Predicts reads: groups next to one that was read are likely to be read next.
//!
//! Groups are packed in tree order. What a start reads of an image lies in a few dense stretches: a
//! program, its libraries, its packages. Recorded starts (python with numpy and pandas, a bundler
//! on node, git) read 72 of 74 groups of one package, in no particular order. So both sides count
//! alike, and the reach grows with the share of reads that were predicted. Of a large file that a
//! program maps, nearly all groups are read once the first is.

use std::collections::VecDeque;

use super::types::Touched;

/// Distance to each side of a read group, in groups: initial and maximum.
const REACH_MIN: u32 = 4;
const REACH_MAX: u32 = 16;
/// A large file with at most this many groups (16 MiB) is taken whole.
const FILE_GROUPS: u32 = 32;
/// Maximum queue length.
const QUEUE_MAX: usize = 512;

/// Queue of neighbours of read groups, most likely first.
#[derive(Debug)]
pub(super) struct Neighbours {
    queue: VecDeque<u32>,
    reach: u32,
    /// Whether neighbours were added since the last `pop`.
    fresh: bool,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self { queue: VecDeque::new(), reach: REACH_MIN, fresh: false }
    }
}

impl Neighbours {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn are_fresh(&self) -> bool {
        self.fresh && !self.queue.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        self.fresh = false;
        self.queue.pop_front()
    }

    /// Drops groups from the front for which `taken` returns true.
    pub(super) fn skip(&mut self, taken: impl Fn(u32) -> bool) {
        while self.queue.front().is_some_and(|number| taken(*number)) {
            self.queue.pop_front();
        }
    }

    /// Adds the neighbours of a group on its first read. `foreseen` says whether the read was
    /// predicted, `groups` is the snapshot's group count, and `known` returns true for groups to
    /// leave out.
    pub(super) fn touched(
        &mut self,
        touch: &Touched,
        foreseen: bool,
        groups: u32,
        known: impl Fn(u32) -> bool,
    ) {
        self.reach = if foreseen {
            (self.reach * 2).min(REACH_MAX)
        } else {
            (self.reach / 2).max(REACH_MIN)
        };
        let file = touch.file.start..touch.file.end.min(groups);
        let whole = file.len() <= FILE_GROUPS as usize;
        let near = |distance: u32| {
            let above = touch.group.checked_add(distance).filter(|number| *number < groups);
            [above, touch.group.checked_sub(distance)].into_iter().flatten()
        };
        let of_file = (1..=FILE_GROUPS).flat_map(near).filter(|n| whole && file.contains(n));
        let others = (1..=self.reach).flat_map(near);
        let found: Vec<u32> = of_file.chain(others).filter(|number| !known(*number)).collect();
        self.fresh |= !found.is_empty();
        for number in found.into_iter().rev() {
            self.queue.push_front(number);
        }
        self.queue.truncate(QUEUE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(group: u32, file: std::ops::Range<u32>) -> Touched {
        Touched { group, stored_len: 1, file }
    }

    fn all(neighbours: &mut Neighbours) -> Vec<u32> {
        std::iter::from_fn(|| neighbours.pop()).collect()
    }

    #[test]
    fn both_sides_come_nearest_first_and_further_when_that_was_right() {
        let mut neighbours = Neighbours::default();
        neighbours.touched(&touch(10, 0..0), false, 100, |number| number == 11);
        assert_eq!(all(&mut neighbours), [9, 12, 8, 13, 7, 14, 6]);
        neighbours.touched(&touch(2, 0..0), true, 100, |_| false);
        assert_eq!(all(&mut neighbours), [3, 1, 4, 0, 5, 6, 7, 8, 9, 10]);
        for _ in 0..9 {
            neighbours.touched(&touch(50, 0..0), true, 1000, |_| false);
        }
        assert!(all(&mut neighbours).contains(&(50 + REACH_MAX)));
    }

    #[test]
    fn a_file_that_is_not_too_large_comes_whole() {
        let mut neighbours = Neighbours::default();
        neighbours.touched(&touch(20, 10..40), false, 1000, |_| false);
        let found = all(&mut neighbours);
        assert!((10..40).filter(|number| *number != 20).all(|number| found.contains(&number)));
        neighbours.touched(&touch(200, 100..900), false, 1000, |_| false);
        assert_eq!(all(&mut neighbours).len(), 2 * REACH_MIN as usize);
    }

    #[test]
    fn a_file_that_lies_about_its_groups_is_bounded() {
        let mut neighbours = Neighbours::default();
        for group in 0..1000 {
            neighbours.touched(&touch(group, 0..u32::MAX), true, 1000, |_| false);
        }
        assert!(all(&mut neighbours).len() <= QUEUE_MAX);
    }
}
