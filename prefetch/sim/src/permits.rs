//! A fair semaphore in virtual time: permits, and who waits for one.

use std::collections::VecDeque;

/// See the module.
#[derive(Debug)]
pub(crate) struct Permits<T> {
    free: usize,
    queue: VecDeque<T>,
}

impl<T> Permits<T> {
    pub(crate) fn new(count: usize) -> Self {
        Self { free: count, queue: VecDeque::new() }
    }

    /// Gives `who` back if there is a permit for it now. Otherwise it waits.
    pub(crate) fn acquire(&mut self, who: T) -> Option<T> {
        if self.free == 0 {
            self.queue.push_back(who);
            return None;
        }
        self.free -= 1;
        Some(who)
    }

    /// Gives a permit back. Gives whoever has it next.
    pub(crate) fn release(&mut self) -> Option<T> {
        let next = self.queue.pop_front();
        if next.is_none() {
            self.free += 1;
        }
        next
    }
}
