//! The clock of traces: one that all processes of a host share.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the kernel's monotonic clock. Never 0.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (secs, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    let all = secs.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0));
    all.max(1)
}

/// From one moment to another in microseconds, negative if the other was before; 0 stands for a
/// moment that is not known and gives -1.
pub(crate) fn micros(from: u64, to: u64) -> i64 {
    let micros = |nanos: u64| i64::try_from(nanos / 1000).unwrap_or(i64::MAX);
    match (to, to >= from) {
        (0, _) => -1,
        (_, true) => micros(to - from),
        (_, false) => -micros(from - to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_sign_and_unknown_ones_are_said_to_be_so() {
        assert_eq!(micros(1000, 5_001_999), 5000);
        assert_eq!(micros(5_000_000, 1_000_000), -4000);
        assert_eq!(micros(1000, 0), -1);
        let (one, other) = (now(), now());
        assert!(one <= other);
    }
}
