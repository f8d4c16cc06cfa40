//! A network link between a client and a server on loopback: a latency for each request, and a
//! bandwidth that all connections share.
//!
//! # Latency
//!
//! A request takes one round trip: its answer begins to pass at the earliest when the latency is
//! over since the request arrived, its body included. The server is asked meanwhile, so what it
//! needs is hidden by the latency, as long as it is shorter. The jitter of a request follows from
//! the seed and the request's number alone.
//!
//! # Bandwidth
//!
//! Each direction has a clock (`link/clock.rs`) that says from when on the link is free. A body is cut
//! into frames of 16 to 64 KiB, about what passes in a millisecond. A frame takes the link from
//! when it is free, or from now if that is later, for its size divided by the bandwidth, and is
//! passed at the end of this time: when its last byte would have arrived. So reserved times never
//! overlap, whatever the bodies do. This is the virtual scheduling of the generic cell rate
//! algorithm (ITU-T I.371, annex A), with two allowances for a machine that can't sleep exactly:
//!
//! - A frame may pass a millisecond early if no other waits. So nobody sleeps for less than that,
//!   and a link of 10 Gbit/s has a megabyte to pass at once.
//! - A body that comes for its next frame up to 10 ms after the one before it was due takes the
//!   link from then on: it was woken late, and a real link would have filled a buffer meanwhile.
//!
//! A transfer is never faster than the link by more than the first millisecond. In any window
//! there is at most what the link passes in it and in 11 ms more, and a frame for each body.
//!
//! Frames that wait pass in the order in which they took the link, and each body has one at most:
//! so bodies take turns, and a small answer does not wait behind a large one. When frames are due
//! because somebody was woken late, they follow each other without a timer; bodies that are
//! quicker with their next frame then catch up first.
//!
//! # What it is not
//!
//! No connection is slow at first or loses anything; opening one costs nothing; headers take no
//! bandwidth; a buffer of the kernel's on the way (loopback) is beside the link, not in it.
//!
//! # Measured
//!
//! `shaped-store --self-test`, built for release, on two cores that also ran the server and the
//! client: medians of 5 transfers and of 50 requests one after another, the quietest of several runs.
//! "Nominal" is by the bandwidth alone; the latency comes on top. "Processor" is the time of all
//! threads of the proxy for one transfer in one piece.
//!
//! | link | 64 MiB, ms | nominal | in 8 parts at once | processor, ms | 1 byte, ms |
//! | --- | --- | --- | --- | --- | --- |
//! | none | 50.9 | | 60.3 | 21.2 | 0.69 (0.60 to 1.33) |
//! | zone | 68.0 | 53.7 | 80.0 | 22.1 | 2.25 (1.98 to 2.68) |
//! | region | 287.6 | 268.4 | 290.1 | 27.0 | 20.54 (18.51 to 22.46) |
//! | wan | 2733.2 | 2684.4 | 2733.6 | 109.3 | 51.52 (45.72 to 58.17) |
//!
//! So region and wan take their nominal time and latency, within 1 %. The zone's bandwidth is
//! what these two cores can pass at all: its times are those of the processors, and grow with
//! whatever else runs (to 213 ms on a machine that was compiling), as those without a link do. On
//! that machine region took up to 388 ms and wan up to 2784. Larger buffers in the HTTP
//! library (1 MiB instead of 408 KiB) made no difference.

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
