//! A network link between a client and a server on loopback: a latency for each request, and a
//! bandwidth that all connections share.

mod clock;
mod paced;
mod profile;
mod timer;

use std::io;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use profile::{Bandwidth, LinkProfile, ProfileError};

use clock::{LinkClock, Ticket, Turn};
pub(crate) use paced::Paced;

/// Which way bytes go over a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// A part of a body that has its time on the link.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// How many bytes of what was to pass.
    bytes: usize,
    now: Duration,
    /// When the last of them has passed.
    due: Duration,
    turn: Turn,
}

#[derive(Debug)]
struct Shape {
    profile: LinkProfile,
    /// How many requests came since the profile was set.
    requests: u64,
    up: LinkClock<Waker>,
    down: LinkClock<Waker>,
}

impl Shape {
    fn clock(&mut self, direction: Direction) -> &mut LinkClock<Waker> {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

/// One link, with the time since it was made.
#[derive(Debug)]
pub(crate) struct Link {
    start: Instant,
    shape: Mutex<Shape>,
}

impl Link {
    /// A link that delays nothing.
    pub(crate) fn new() -> Self {
        let (up, down) = (LinkClock::new(), LinkClock::new());
        let shape = Shape { profile: LinkProfile::NONE, requests: 0, up, down };
        Self { start: Instant::now(), shape: Mutex::new(shape) }
    }

    /// Makes it another link, whose first request is the next one. The frames that wait pass.
    pub(crate) fn shape(&self, profile: LinkProfile) {
        let mut shape = self.shape.lock();
        shape.profile = profile;
        shape.requests = 0;
        let mut wakers = shape.up.restart();
        wakers.append(&mut shape.down.restart());
        drop(shape);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// What the link is like.
    pub(crate) fn profile(&self) -> LinkProfile {
        self.shape.lock().profile
    }

    /// The time since the link was made.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The latency of the next request.
    pub(crate) fn next_latency(&self) -> Duration {
        let mut shape = self.shape.lock();
        let latency = shape.profile.latency_of(shape.requests);
        shape.requests += 1;
        latency
    }

    /// Waits until so much time has passed since the link was made.
    pub(crate) async fn wait_until(&self, time: Duration) -> io::Result<()> {
        match time.saturating_sub(self.now()) {
            Duration::ZERO => Ok(()),
            wait => timer::sleep(wait).await,
        }
    }

    /// Takes the link for the first of so many bytes of a body; none if its bandwidth has no
    /// bound. For `previous`, see [`LinkClock::reserve`].
    fn reserve(
        &self,
        direction: Direction,
        bytes: usize,
        previous: Option<Duration>,
    ) -> Option<Slot> {
        let mut shape = self.shape.lock();
        let bandwidth = shape.profile.bandwidth()?;
        // Within the lock, so that no later time is reserved before an earlier one.
        let now = self.now();
        let bytes = bytes.min(clock::frame_size(bandwidth));
        let (due, turn) = shape.clock(direction).reserve(bandwidth, bytes, now, previous);
        Some(Slot { bytes, now, due, turn })
    }

    /// Whether a frame that waits passes now; if not, `waker` is woken when its turn has come.
    fn passes(&self, direction: Direction, ticket: Ticket, waker: &Waker) -> bool {
        self.with_clock(direction, |clock, now| clock.passes(ticket, now, waker.clone()))
    }

    /// A frame that waits never passes.
    fn give_up(&self, direction: Direction, ticket: Ticket) {
        self.with_clock(direction, |clock, _| clock.give_up(ticket));
    }

    /// Changes who waits, and wakes whoever may pass now.
    fn with_clock<T>(
        &self,
        direction: Direction,
        change: impl FnOnce(&mut LinkClock<Waker>, Duration) -> T,
    ) -> T {
        let mut shape = self.shape.lock();
        let now = self.now();
        let clock = shape.clock(direction);
        let result = change(clock, now);
        let next = clock.next_up(now);
        drop(shape);
        if let Some(next) = next {
            next.wake();
        }
        result
    }
}
