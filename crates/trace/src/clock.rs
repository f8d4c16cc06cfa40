//! Reads the clock of traces, which all processes of a host share.

use rustix::time::{ClockId, clock_gettime};

/// Returns nanoseconds of the kernel's monotonic clock. Never 0.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (secs, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    let all = secs.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0));
    all.max(1)
}

/// Returns the microseconds from one time to another, negative if the other is earlier. A `to` of 0
/// is unknown and yields -1.
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
