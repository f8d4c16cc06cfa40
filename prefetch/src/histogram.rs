//! A lock-free histogram of durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of all buckets but the last, in microseconds, from a cache read to a start over a
/// slow link. Each is at most [`STEP_MAX`] times its predecessor, which bounds the error of a
/// quantile computed from the buckets to that factor.
pub const BOUNDS_MICROS: [u64; 22] = [
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];
/// Maximum ratio of a bound to its predecessor.
pub const STEP_MAX: f64 = 2.5;

/// A histogram of durations, updated concurrently without a lock.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

/// Counts of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistogramCounts {
    /// Durations per bucket; the last bucket is above all bounds.
    pub buckets: [u64; BOUNDS_MICROS.len() + 1],
    /// Sum of all durations, in microseconds.
    pub sum_micros: u64,
}

impl Histogram {
    /// Records a duration.
    pub fn take(&self, duration: Duration) {
        self.take_for(duration, 1);
    }

    /// Records a sample that stands for `number` durations, itself included.
    pub fn take_for(&self, duration: Duration, number: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(number, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros.saturating_mul(number), Ordering::Relaxed);
    }

    /// Returns the current counts. Not an atomic snapshot across buckets.
    pub fn stats(&self) -> HistogramCounts {
        HistogramCounts {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed)),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
        }
    }
}

impl HistogramCounts {
    /// Total number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds the counts of another histogram.
    pub fn add(&mut self, other: &Self) {
        for (one, more) in self.buckets.iter_mut().zip(other.buckets) {
            *one += more;
        }
        self.sum_micros += other.sum_micros;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 10, 11, 1_000_000, 100_000_001] {
            histogram.take(Duration::from_micros(micros));
        }
        let stats = histogram.stats();
        assert_eq!(stats.buckets[..2], [2, 1]);
        assert_eq!(stats.buckets[15..], [1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((stats.count(), stats.sum_micros), (5, 101_000_022));
        histogram.take_for(Duration::from_micros(2), 16);
        let stats = histogram.stats();
        assert_eq!((stats.buckets[0], stats.sum_micros), (18, 101_000_054));
    }
}
