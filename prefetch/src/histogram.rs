//! How long things took: counted in buckets, by any number of threads, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of all buckets but the last, in microseconds: what a reader of a cache waits, up
/// to what it waits at most.
pub const BOUNDS_MICROS: [u64; 15] = [
    10, 25, 50, 100, 250, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    10_000_000,
];

/// Durations, counted.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

/// What a histogram has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistogramFigures {
    /// How many fell between a bound and the one before it; the last are above all bounds.
    pub buckets: [u64; BOUNDS_MICROS.len() + 1],
    /// All durations together, in microseconds.
    pub sum_micros: u64,
}

impl Histogram {
    /// Counts one.
    pub fn take(&self, duration: Duration) {
        self.take_for(duration, 1);
    }

    /// Counts one that stands for `number`, itself included.
    pub fn take_for(&self, duration: Duration, number: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(number, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros.saturating_mul(number), Ordering::Relaxed);
    }

    /// What was counted. No snapshot of one instant.
    pub fn figures(&self) -> HistogramFigures {
        HistogramFigures {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed)),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
        }
    }
}

impl HistogramFigures {
    /// How many durations there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds what another histogram has counted.
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
        for micros in [0, 10, 11, 1_000_000, 10_000_001] {
            histogram.take(Duration::from_micros(micros));
        }
        let figures = histogram.figures();
        assert_eq!(figures.buckets[..2], [2, 1]);
        assert_eq!(figures.buckets[13..], [1, 0, 1]);
        assert_eq!((figures.count(), figures.sum_micros), (5, 11_000_022));
        histogram.take_for(Duration::from_micros(2), 16);
        let figures = histogram.figures();
        assert_eq!((figures.buckets[0], figures.sum_micros), (18, 11_000_054));
    }
}
