//! Estimates the link to the store and derives the prefetch window from it.
//!
//! The model is that of BBR (Cardwell, Cheng, Gunn, Yeganeh, Jacobson: "BBR: Congestion-Based
//! Congestion Control", 2016): the maximum delivery rate and the minimum round trip of the last
//! seconds determine how many bytes must be in flight to fill the link. More than that only queues,
//! and a reader's request would wait behind it. A pure state machine: time comes with each call.
//!
//! Prefetch keeps `rate * (round trip + hold)` bytes in flight, where `hold` is the maximum delay
//! it may add to a reader's bytes: a third of a round trip, from 2 to 30 ms. While a reader waits,
//! the window shrinks to what fills the link, so that little queues, and requests shrink, so that
//! the reader's response shares the link with few others. When readers wait much longer than the
//! model predicts (others share the link, or the model is wrong), the window is halved repeatedly
//! and recovers slowly, as in TCP (additive increase, multiplicative decrease): with each reader
//! served in time, and while none is late.

use std::time::Duration;

use super::Moment;

/// Bytes in flight before the first measurement. On a 1 MB/s link that is two seconds, so readers'
/// waits correct it; on a fast link, less would cost round trips until it is filled.
const INITIAL_BYTES: u64 = 2 << 20;
/// Minimum window regardless of measurements: one request of average size.
const LEAST_BYTES: u64 = 256 << 10;
/// Request size before the first measurement, and minimum.
const REQUEST_BYTES_MIN: u64 = 256 << 10;
/// Maximum request size. Larger requests gain nothing, even at 10 Gbit/s and 2 ms.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// Bounds of the delay that prefetch may add to a reader's bytes.
const HOLD_MIN: Duration = Duration::from_millis(2);
const HOLD_MAX: Duration = Duration::from_millis(30);
/// Minimum lifetime of a measurement; the maximum is twice as long.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Bounds of the interval over which the rate is measured. Not shorter, because bytes arrive in
/// bursts.
const RATE_OVER_MIN: Duration = Duration::from_millis(10);
const RATE_OVER_MAX: Duration = Duration::from_millis(50);
/// After three measurements without growth by a fifth, the link is full and fast growth ends.
const FULL_AFTER: u32 = 3;
/// A reader that waits this many times longer than predicted was delayed by prefetch.
const LATE: f64 = 1.5;
/// Waits that exceed the prediction by less than this are not late: the host's own scheduling
/// explains them.
const LATE_MIN: Duration = Duration::from_millis(3);
/// Minimum share.
const SHARE_MIN: f64 = 1.0 / 16.0;
/// How much of the share is restored by each reader served in time, and by each rate measurement in
/// which none was late. Without the latter, a start that needs no more demand requests would keep
/// half of the link idle until its end.
const SHARE_STEP: f64 = 1.0 / 16.0;

/// Whether a reader waits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    /// None does.
    Idle,
    /// At least one does.
    Wait,
}

/// Current estimate of the link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkEstimate {
    /// Minimum time from a request to the first byte of its response, over the last seconds.
    pub round_trip: Option<Duration>,
    /// Maximum rate over the last seconds, in bytes per second.
    pub rate: Option<f64>,
    /// Fraction of the full window that prefetch uses: 1 unless readers were late.
    pub share: f64,
}

/// Estimator of the link.
#[derive(Debug)]
pub(super) struct Link {
    round_trip: Extreme,
    rate: Extreme,
    /// Start of the current interval and bytes since then, while the link is busy.
    interval: Option<(Moment, u64)>,
    /// Best rate when it last grew, and the number of measurements since.
    growth: (f64, u32),
    share: f64,
    /// Time of the last halving: at most one per round trip.
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

    /// Records bytes that arrived. `busy` says whether more are in flight.
    pub(super) fn arrived(&mut self, now: Moment, bytes: u64, busy: bool) {
        let Some((since, before)) = self.interval else {
            // The first bytes of an interval started to arrive before it, so they do not count.
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
            if self.halved.is_none_or(|at| now.since(at) > took) {
                self.recover();
            }
            self.interval = busy.then_some((now, 0));
        } else {
            self.interval = busy.then_some((since, sum));
        }
    }

    /// Records the first byte of a response, `after` its request.
    pub(super) fn answered(&mut self, now: Moment, after: Duration) {
        self.round_trip.take(now, after.as_secs_f64());
    }

    /// Records that a reader waited `waited` for a demand request of `bytes`.
    pub(super) fn served(&mut self, now: Moment, waited: Duration, bytes: u64) {
        let (Some(round_trip), Some(rate)) = (self.round_trip(), self.rate.get()) else { return };
        #[allow(clippy::cast_precision_loss)]
        let expected = round_trip + Duration::from_secs_f64(bytes as f64 / rate.max(1.0));
        let late = waited > expected.mul_f64(LATE) && waited > expected + LATE_MIN;
        if !late {
            self.recover();
        } else if self.halved.is_none_or(|at| now.since(at) > round_trip) {
            self.halved = Some(now);
            self.share = (self.share / 2.0).max(SHARE_MIN);
        }
    }

    fn recover(&mut self) {
        self.share = (self.share + SHARE_STEP).min(1.0);
    }

    /// Returns the maximum bytes that prefetch may have in flight.
    pub(super) fn window(&self, readers: Readers) -> u64 {
        let Some(rate) = self.rate.get() else { return INITIAL_BYTES };
        let round_trip = self.round_trip().unwrap_or(HOLD_MIN);
        let fills = rate * round_trip.as_secs_f64();
        let growing = self.growth.1 < FULL_AFTER;
        let bytes = match readers {
            Readers::Wait => fills,
            Readers::Idle => fills + rate * hold(round_trip).as_secs_f64(),
        };
        let bytes = bytes * self.share * if growing { 2.0 } else { 1.0 };
        let least = match (growing, readers) {
            (true, Readers::Idle) => INITIAL_BYTES,
            _ => LEAST_BYTES,
        };
        whole(bytes).max(least)
    }

    /// Returns the size of a prefetch request, in bytes: what the link delivers during `hold`, or
    /// the minimum while a reader waits.
    pub(super) fn request_bytes(&self, readers: Readers) -> u64 {
        let (Some(rate), Some(round_trip), Readers::Idle) =
            (self.rate.get(), self.round_trip(), readers)
        else {
            return REQUEST_BYTES_MIN;
        };
        whole(rate * hold(round_trip).as_secs_f64()).clamp(REQUEST_BYTES_MIN, REQUEST_BYTES_MAX)
    }

    fn round_trip(&self) -> Option<Duration> {
        self.round_trip.get().map(Duration::from_secs_f64)
    }
}

fn hold(round_trip: Duration) -> Duration {
    (round_trip / 3).clamp(HOLD_MIN, HOLD_MAX)
}

/// Truncates to whole bytes; saturates out of range.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(bytes: f64) -> u64 {
    bytes as u64
}

/// Windowed minimum or maximum over two time windows, the current and the previous one. Without new
/// measurements, the old ones stay valid.
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

    /// Simulates one second on a link of `rate` bytes per second that is always busy.
    fn steady(link: &mut Link, from: u64, rate: u64, round_trip: u64) {
        for millis in from..from + 1000 {
            link.answered(at(millis), Duration::from_millis(round_trip));
            link.arrived(at(millis), rate / 1000, true);
        }
    }

    #[test]
    fn the_window_fills_the_link_with_little_excess() {
        let mut link = Link::new();
        assert_eq!(link.window(Readers::Idle), INITIAL_BYTES);
        steady(&mut link, 0, 25_000_000, 50);
        let estimate = link.estimate();
        assert!((24e6..26e6).contains(&estimate.rate.unwrap()), "{estimate:?}");
        let fills = 1_250_000;
        assert!((fills..fills * 8 / 5).contains(&link.window(Readers::Idle)));
        assert!(link.window(Readers::Wait) < link.window(Readers::Idle) * 4 / 5);
        assert!((350_000..600_000).contains(&link.request_bytes(Readers::Idle)));
        assert_eq!(link.request_bytes(Readers::Wait), REQUEST_BYTES_MIN);
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
    fn the_share_recovers_after_a_single_late_reader() {
        let mut link = Link::new();
        steady(&mut link, 0, 25_000_000, 50);
        link.served(at(1000), Duration::from_millis(300), 100_000);
        assert!(link.estimate().share < 0.6);
        steady(&mut link, 1001, 25_000_000, 50);
        assert!(link.estimate().share > 0.99);
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
