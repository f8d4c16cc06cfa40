//! The clock of one direction of a link: when each frame has passed, and whose turn it is. It is
//! pure: what time it is comes from outside.

use std::collections::VecDeque;
use std::time::Duration;

use super::profile::Bandwidth;

/// A frame may pass by this much before its time, so that nobody sleeps for less; but only while
/// no other waits, or whoever is awake would always be ahead of those who sleep.
pub(super) const EARLY: Duration = Duration::from_millis(1);

/// A body that comes back for its next frame within this time was kept waiting by the link, or
/// by a machine that woke it late: the link went on in the meantime, as if into a buffer.
pub(super) const LATE: Duration = Duration::from_millis(10);

/// The bounds of a frame's size in bytes.
const FRAME: (u64, u64) = (16 << 10, 64 << 10);

/// The largest frame: what a link of this bandwidth passes in a millisecond, within bounds.
pub(super) fn frame_size(bandwidth: Bandwidth) -> usize {
    let size = (bandwidth.get() / 1000).clamp(FRAME.0, FRAME.1);
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// A frame that waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Ticket(u64);

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// It passes now.
    Now,
    /// It waits until [`LinkClock::passes`], or until it is given up.
    Waits(Ticket),
}

#[derive(Debug)]
struct Waiting<W> {
    ticket: Ticket,
    due: Duration,
    /// Wakes the body, if it asks to be woken.
    waker: Option<W>,
}

/// The clock. Times are counted from the same moment, whichever that is; `W` wakes a body.
#[derive(Debug)]
pub(super) struct LinkClock<W> {
    next_free: Duration,
    next_ticket: Ticket,
    /// In the order of tickets, which is the order in which they are due.
    waiting: VecDeque<Waiting<W>>,
}

impl<W> LinkClock<W> {
    pub(super) fn new() -> Self {
        Self { next_free: Duration::ZERO, next_ticket: Ticket(0), waiting: VecDeque::new() }
    }

    /// Takes the link for a frame of so many bytes that came up at `now`, and says when its last
    /// byte has passed. `previous` is what was said for the frame before it in the same body.
    pub(super) fn reserve(
        &mut self,
        bandwidth: Bandwidth,
        bytes: usize,
        now: Duration,
        previous: Option<Duration>,
    ) -> (Duration, Turn) {
        let waited = previous.filter(|due| *due < now && due.saturating_add(LATE) >= now);
        let ready = waited.unwrap_or(now);
        let due = self.next_free.max(ready).saturating_add(bandwidth.time_of(bytes));
        self.next_free = due;
        if self.waiting.is_empty() && due.saturating_sub(now) <= EARLY {
            return (due, Turn::Now);
        }
        let ticket = self.next_ticket;
        self.next_ticket = Ticket(ticket.0.wrapping_add(1));
        self.waiting.push_back(Waiting { ticket, due, waker: None });
        (due, Turn::Waits(ticket))
    }

    /// Whether this frame passes now: it is due, and none waits that was before it. If not,
    /// `waker` is kept.
    pub(super) fn passes(&mut self, ticket: Ticket, now: Duration, waker: W) -> bool {
        if self.waiting.pop_front_if(|front| front.ticket == ticket && front.due <= now).is_some() {
            return true;
        }
        if let Ok(at) = self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket)
            && let Some(waiting) = self.waiting.get_mut(at)
        {
            waiting.waker = Some(waker);
        }
        false
    }

    /// This frame never passes. The link has been taken for it nevertheless.
    pub(super) fn give_up(&mut self, ticket: Ticket) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
    }

    /// Who is to be woken because its frame may pass: asked after each change, so that those who
    /// are due follow each other without a timer.
    pub(super) fn next_up(&mut self, now: Duration) -> Option<W> {
        self.waiting.front_mut().filter(|front| front.due <= now)?.waker.take()
    }

    /// Begins anew: nothing is reserved, and what waits may pass. All who wait are to be woken.
    pub(super) fn restart(&mut self) -> Vec<W> {
        self.next_free = Duration::ZERO;
        let waiting = self.waiting.iter_mut();
        waiting
            .filter_map(|waiting| {
                waiting.due = Duration::ZERO;
                waiting.waker.take()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
