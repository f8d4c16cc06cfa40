//! A fair semaphore in virtual time.

use std::collections::VecDeque;

/// Free permits and a FIFO queue of waiters.
#[derive(Debug)]
pub(crate) struct Permits<T> {
    free: usize,
    queue: VecDeque<T>,
}

impl<T> Permits<T> {
    pub(crate) fn new(count: usize) -> Self {
        Self { free: count, queue: VecDeque::new() }
    }

    /// Returns `who` if a permit is free; otherwise queues it.
    pub(crate) fn acquire(&mut self, who: T) -> Option<T> {
        if self.free == 0 {
            self.queue.push_back(who);
            return None;
        }
        self.free -= 1;
        Some(who)
    }

    /// Releases a permit. Returns the waiter that gets it, if any.
    pub(crate) fn release(&mut self) -> Option<T> {
        let next = self.queue.pop_front();
        if next.is_none() {
            self.free += 1;
        }
        next
    }
}
