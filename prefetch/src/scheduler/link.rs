//! What the link to the store can do, as far as it was seen, and what follows for prefetching.
//!
//! The model is that of BBR (Cardwell, Cheng, Gunn, Yeganeh, Jacobson: "BBR: Congestion-Based
//! Congestion Control", 2016): the greatest rate of delivery and the least round trip of the last
//! seconds say how many bytes must be under way to fill the link. More than that only queues, and a
//! reader's request would wait behind it. A pure state machine: time comes with each call.
//!
//! Prefetching has `rate * (round trip + hold)` bytes under way, where `hold` is how long it may
//! keep a reader's bytes waiting: half a round trip, from 2 to 30 ms. While a reader waits, it is
//! less than what fills the link, so that nothing queues. And when readers wait much longer than the
//! model says (others share the link, or the model is wrong), it is halved again and again, and
//! recovers slowly, as TCP does (additive increase, multiplicative decrease).

use std::time::Duration;

use super::Moment;

/// Bytes under way before anything was measured. On a link of 1 MB/s that is two seconds, which is
/// why readers' waits correct it; on a fast one less would cost round trips until it is filled.
const INITIAL_BYTES: u64 = 2 << 20;
/// Bytes under way are never fewer, whatever was measured: one request of average size.
const LEAST_BYTES: u64 = 256 << 10;
/// The size of requests, before anything was measured and at least.
const REQUEST_BYTES_MIN: u64 = 256 << 10;
/// The largest request. Beyond it nothing is gained, even at 10 Gbit/s and 2 ms.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// How long prefetching may keep a reader's bytes waiting.
const HOLD_MIN: Duration = Duration::from_millis(2);
const HOLD_MAX: Duration = Duration::from_millis(30);
/// How long a measurement counts at least; it counts at most twice as long.
const REMEMBERED: Duration = Duration::from_secs(5);
/// The rate is taken over so long at least, because bytes arrive in bursts.
const RATE_OVER_MIN: Duration = Duration::from_millis(10);
const RATE_OVER_MAX: Duration = Duration::from_millis(50);
/// Three measurements without growth by a fifth: the link is full, and growing fast is over.
const FULL_AFTER: u32 = 3;
/// A reader that waits so many times longer than the model says has been in somebody's way.
const LATE: f64 = 1.5;
/// Below this difference a wait is not late: it is the host's own scheduling.
const LATE_MIN: Duration = Duration::from_millis(3);
/// What is left of the share at least.
const SHARE_MIN: f64 = 1.0 / 16.0;
/// How much of it comes back with each reader that was served in time.
const SHARE_STEP: f64 = 1.0 / 16.0;
/// While a reader waits, this part of what fills the link may be under way: nothing queues then.
const BESIDE_READERS: f64 = 1.0;

/// Whether a reader waits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    /// None does.
    Idle,
    /// At least one does.
    Wait,
}

/// What the link is taken to be now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkEstimate {
    /// The least time from a request to the first byte of its answer, of the last seconds.
    pub round_trip: Option<Duration>,
    /// The greatest rate, in bytes a second, of the last seconds.
    pub rate: Option<f64>,
    /// Which part of what would fill the link prefetching takes: 1 unless readers had to wait.
    pub share: f64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    round_trip: Extreme,
    rate: Extreme,
    /// Bytes since the moment, while the link is busy.
    interval: Option<(Moment, u64)>,
    /// The best rate when it last grew, and how many measurements ago that was.
    growth: (f64, u32),
    share: f64,
    /// The share is halved once a round trip at most.
    halved: Option<Moment>,
}

impl Link {
    pub(super) fn new() -> Self {
        Self {
            round_trip: Extreme::least(),
            rate: Extreme::greatest(),
            interval: None,
            growth: (0.0, 0),
            share: 1.0,
            halved: None,
        }
    }

    pub(super) fn estimate(&self) -> LinkEstimate {
        LinkEstimate {
            round_trip: self.round_trip.get().map(Duration::from_secs_f64),
            rate: self.rate.get(),
            share: self.share,
        }
    }

    /// So many bytes have come. `busy` says whether more are under way.
    pub(super) fn arrived(&mut self, now: Moment, bytes: u64, busy: bool) {
        let Some((since, before)) = self.interval else {
            // The first bytes of an interval began to come before it.
            self.interval = busy.then_some((now, 0));
            return;
        };
        let sum = before + bytes;
        let took = now.since(since);
        let over = self.round_trip().unwrap_or(RATE_OVER_MAX).clamp(RATE_OVER_MIN, RATE_OVER_MAX);
        if took >= over {
            // Far below 2^52: exact.
            #[allow(clippy::cast_precision_loss)]
            let rate = sum as f64 / took.as_secs_f64();
            self.rate.take(now, rate);
            if rate > self.growth.0 * 1.2 {
                self.growth = (rate, 0);
            } else {
                self.growth.1 = self.growth.1.saturating_add(1);
            }
            self.interval = busy.then_some((now, 0));
        } else {
            self.interval = busy.then_some((since, sum));
        }
    }

    /// The first byte of an answer has come `after` its request.
    pub(super) fn answered(&mut self, now: Moment, after: Duration) {
        self.round_trip.take(now, after.as_secs_f64());
    }

    /// A reader had to wait `waited` for `bytes` that it asked the store for itself.
    pub(super) fn served(&mut self, now: Moment, waited: Duration, bytes: u64) {
        let (Some(round_trip), Some(rate)) = (self.round_trip(), self.rate.get()) else { return };
        #[allow(clippy::cast_precision_loss)]
        let expected = round_trip + Duration::from_secs_f64(bytes as f64 / rate.max(1.0));
        let late = waited > expected.mul_f64(LATE) && waited > expected + LATE_MIN;
        if !late {
            self.share = (self.share + SHARE_STEP).min(1.0);
        } else if self.halved.is_none_or(|at| now.since(at) > round_trip) {
            self.halved = Some(now);
            self.share = (self.share / 2.0).max(SHARE_MIN);
        }
    }

    /// How many bytes prefetching may have under way.
    pub(super) fn window(&self, readers: Readers) -> u64 {
        let Some(rate) = self.rate.get() else { return INITIAL_BYTES };
        let round_trip = self.round_trip().unwrap_or(HOLD_MIN);
        let fills = rate * round_trip.as_secs_f64();
        let growing = self.growth.1 < FULL_AFTER;
        let bytes = match readers {
            Readers::Wait => fills * BESIDE_READERS,
            Readers::Idle => fills + rate * hold(round_trip).as_secs_f64(),
        };
        let bytes = bytes * self.share * if growing { 2.0 } else { 1.0 };
        let least = match (growing, readers) {
            (true, Readers::Idle) => INITIAL_BYTES,
            _ => LEAST_BYTES,
        };
        whole(bytes).max(least)
    }

    /// How long a request of prefetching should be, in bytes: what passes while it may hold the link.
    pub(super) fn request_bytes(&self) -> u64 {
        let (Some(rate), Some(round_trip)) = (self.rate.get(), self.round_trip()) else {
            return REQUEST_BYTES_MIN;
        };
        whole(rate * hold(round_trip).as_secs_f64()).clamp(REQUEST_BYTES_MIN, REQUEST_BYTES_MAX)
    }

    fn round_trip(&self) -> Option<Duration> {
        self.round_trip.get().map(Duration::from_secs_f64)
    }
}

fn hold(round_trip: Duration) -> Duration {
    (round_trip / 2).clamp(HOLD_MIN, HOLD_MAX)
}

/// Bytes as a whole number. What does not fit becomes the nearest that does.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(bytes: f64) -> u64 {
    bytes as u64
}

/// The least or the greatest of the last seconds: of two spans of time, the current one and the one
/// before. Without new measurements the old ones stay.
#[derive(Debug)]
struct Extreme {
    better: fn(f64, f64) -> f64,
    current: Option<f64>,
    before: Option<f64>,
    since: Moment,
}

impl Extreme {
    fn least() -> Self {
        Self { better: f64::min, current: None, before: None, since: Moment::default() }
    }

    fn greatest() -> Self {
        Self { better: f64::max, ..Self::least() }
    }

    fn take(&mut self, now: Moment, value: f64) {
        if now.since(self.since) >= REMEMBERED {
            self.before = self.current.take();
            self.since = now;
        }
        self.current = Some(self.current.map_or(value, |current| (self.better)(current, value)));
    }

    fn get(&self) -> Option<f64> {
        match (self.current, self.before) {
            (Some(current), Some(before)) => Some((self.better)(current, before)),
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    /// A link of `rate` bytes a second that is always busy, for a second.
    fn steady(link: &mut Link, from: u64, rate: u64, round_trip: u64) {
        for millis in from..from + 1000 {
            link.answered(at(millis), Duration::from_millis(round_trip));
            link.arrived(at(millis), rate / 1000, true);
        }
    }

    #[test]
    fn what_is_under_way_fills_the_link_and_little_more() {
        let mut link = Link::new();
        assert_eq!(link.window(Readers::Idle), INITIAL_BYTES);
        steady(&mut link, 0, 25_000_000, 50);
        let estimate = link.estimate();
        assert!((24e6..26e6).contains(&estimate.rate.unwrap()), "{estimate:?}");
        let fills = 1_250_000;
        assert!((fills..fills * 8 / 5).contains(&link.window(Readers::Idle)));
        assert!(link.window(Readers::Wait) <= fills * 11 / 10);
        assert!((400_000..800_000).contains(&link.request_bytes()));
    }

    #[test]
    fn a_burst_is_not_taken_for_the_rate() {
        let mut link = Link::new();
        link.answered(at(0), Duration::from_millis(50));
        link.arrived(at(0), 1 << 20, true);
        link.arrived(at(1), 4 << 20, true);
        assert_eq!(link.estimate().rate, None);
        link.arrived(at(100), 0, true);
        assert!(link.estimate().rate.unwrap() < 45e6);
    }

    #[test]
    fn a_slower_link_is_noticed_within_seconds() {
        let mut link = Link::new();
        steady(&mut link, 0, 100_000_000, 20);
        for second in 1..12 {
            steady(&mut link, second * 1000, 10_000_000, 20);
        }
        assert!(link.estimate().rate.unwrap() < 11e6, "{:?}", link.estimate());
    }

    #[test]
    fn readers_that_wait_too_long_make_room_and_give_it_back() {
        let mut link = Link::new();
        steady(&mut link, 0, 25_000_000, 50);
        let before = link.window(Readers::Idle);
        for wait in 0..3 {
            link.served(at(1000 + wait * 100), Duration::from_millis(300), 100_000);
        }
        assert!(link.window(Readers::Idle) <= before / 6);
        for _ in 0..16 {
            link.served(at(2000), Duration::from_millis(55), 100_000);
        }
        assert_eq!(link.window(Readers::Idle), before);
    }

    #[test]
    fn a_link_that_was_idle_is_not_taken_for_slow() {
        let mut link = Link::new();
        steady(&mut link, 0, 25_000_000, 50);
        link.arrived(at(1001), 10, false);
        link.arrived(at(9000), 10, false);
        assert!(link.estimate().rate.unwrap() > 24e6);
    }
}
