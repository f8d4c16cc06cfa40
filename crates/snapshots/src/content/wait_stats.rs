//! Measures the latency of reads served by this host, from its cache or from recent data in memory.
//!
//! Two clock reads are a noticeable part of such a read, so one read in [`SAMPLE`] is timed and
//! counts for all of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use inlay_prefetch::{Histogram, HistogramCounts};

/// Number of reads per timed read.
pub(super) const SAMPLE: u64 = 16;

/// Histogram of read latencies, shared by all snapshots of a daemon.
#[derive(Debug, Default)]
pub struct CacheWaits {
    reads: AtomicU64,
    times: Histogram,
}

/// A read being timed.
#[derive(Debug)]
pub(super) struct Timed<'w> {
    began: Instant,
    times: &'w Histogram,
}

impl CacheWaits {
    /// Counts a read. Returns a timer if this one is sampled.
    pub(super) fn begin(&self) -> Option<Timed<'_>> {
        let before = self.reads.fetch_add(1, Ordering::Relaxed);
        (before % SAMPLE == SAMPLE - 1).then(|| Timed { began: Instant::now(), times: &self.times })
    }

    /// Returns the histogram, in which each timed read counts [`SAMPLE`] times.
    pub fn stats(&self) -> HistogramCounts {
        self.times.stats()
    }
}

impl Timed<'_> {
    /// Records a read that was served. A read that would have to wait is not recorded.
    pub(super) fn end(&self) {
        self.times.take_for(self.began.elapsed(), SAMPLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    #[test]
    fn one_read_in_sixteen_is_timed_and_counts_for_all() {
        let waits = CacheWaits::default();
        for read in 0..SAMPLE * 4 {
            let timed = waits.begin();
            assert_eq!(timed.is_some(), read % SAMPLE == SAMPLE - 1);
            // The last one would have to wait.
            if read < SAMPLE * 3 {
                timed.inspect(Timed::end);
            }
        }
        assert_eq!(waits.stats().count(), SAMPLE * 3);
    }

    /// `cargo test --release -p inlay-snapshots --lib content::wait_stats -- --ignored --nocapture`
    #[test]
    #[ignore = "prints what timing costs"]
    fn timing_overhead() {
        const READS: u32 = 1_000_000;
        let (waits, always) = (CacheWaits::default(), Histogram::default());
        let nanos = |work: &dyn Fn()| {
            let begin = Instant::now();
            (0..READS).for_each(|_| work());
            begin.elapsed() / READS
        };
        let each = nanos(&|| always.take(black_box(Instant::now()).elapsed()));
        let sampled = nanos(&|| {
            black_box(waits.begin().inspect(Timed::end));
        });
        println!("each read timed: {each:?} a read; one in {SAMPLE}: {sampled:?}");
    }
}
