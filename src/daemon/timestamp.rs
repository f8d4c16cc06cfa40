//! Timestamps that stay comparable when the wall clock is set: wall time plus time since boot.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use inlay_base::boot::boot_id;
use inlay_base::time::since_epoch;

/// A timestamp on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moment {
    /// Wall time: seconds since 1970-01-01 00:00 UTC.
    pub(super) unix_s: u64,
    /// Nanoseconds of the wall time's second.
    pub(super) unix_ns: u32,
    /// Id of the boot that `since_boot_ms` refers to. Empty: unknown.
    pub(super) boot: String,
    /// Milliseconds since boot, including suspend.
    pub(super) since_boot_ms: u64,
}

impl Moment {
    /// Returns the current time.
    pub(super) fn now() -> Self {
        let wall = since_epoch();
        let boot = clock_gettime(ClockId::Boottime);
        let millis = u64::try_from(boot.tv_sec).unwrap_or(0).saturating_mul(1000);
        Self {
            unix_s: wall.as_secs(),
            unix_ns: wall.subsec_nanos(),
            // Unknown if there is no /proc.
            boot: boot_id().unwrap_or_default().to_owned(),
            since_boot_ms: millis + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000,
        }
    }

    /// Returns the wall time, by the clock of that moment.
    pub(super) fn wall(&self) -> Duration {
        Duration::from_secs(self.unix_s).saturating_add(Duration::from_nanos(self.unix_ns.into()))
    }

    /// Returns the milliseconds from `earlier` to this timestamp, independent of changes of the
    /// wall clock. Across a reboot, only the time since boot is known and counted.
    pub(super) fn millis_since(&self, earlier: &Self) -> u64 {
        if self.is_in_boot_of(earlier) {
            self.since_boot_ms.saturating_sub(earlier.since_boot_ms)
        } else {
            self.since_boot_ms
        }
    }

    /// Returns the earliest wall time that `earlier` may have had: by the clock of that moment or,
    /// within one boot, by the clock of `self`.
    pub(super) fn earliest_wall_of(&self, earlier: &Self) -> Duration {
        let then = earlier.wall();
        if !self.is_in_boot_of(earlier) {
            return then;
        }
        let age = Duration::from_millis(self.since_boot_ms.saturating_sub(earlier.since_boot_ms));
        // Both timestamps are truncated to milliseconds.
        let by_now = self.wall().saturating_sub(age).saturating_sub(Duration::from_millis(2));
        // The two differ by little unless the clock was set in between.
        if by_now.saturating_add(Duration::from_secs(1)) < then { by_now } else { then }
    }

    fn is_in_boot_of(&self, other: &Self) -> bool {
        !self.boot.is_empty() && self.boot == other.boot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(unix_s: u64, boot: &str, since_boot_ms: u64) -> Moment {
        Moment { unix_s, unix_ns: 5, boot: boot.to_owned(), since_boot_ms }
    }

    #[test]
    fn now_counts_forward_in_one_boot() {
        let (one, two) = (Moment::now(), Moment::now());
        assert!(!one.boot.is_empty() && one.boot == two.boot);
        assert!(one.since_boot_ms > 0 && two.since_boot_ms >= one.since_boot_ms);
        assert!(one.unix_s > 1_700_000_000);
        let (wall, unix_s) = (one.wall(), Duration::from_secs(one.unix_s));
        assert!(wall >= unix_s && wall < unix_s + Duration::from_secs(1));
    }

    #[test]
    fn the_age_is_independent_of_the_wall_clock() {
        let early = moment(1000, "a", 5_000);
        assert_eq!(moment(10, "a", 8_000).millis_since(&early), 3_000);
        assert_eq!(moment(10, "a", 4_000).millis_since(&early), 0);
        assert_eq!(moment(10, "b", 4_000).millis_since(&early), 4_000);
        assert_eq!(moment(10, "", 9_000).millis_since(&moment(9, "", 8_000)), 9_000);
    }

    #[test]
    fn a_clock_that_was_wrong_is_corrected() {
        let nanos = Duration::from_nanos(5);
        // An hour ahead when sealed, corrected 10 s later.
        let early = moment(4600, "a", 5_000);
        let now = moment(1010, "a", 15_000);
        let corrected = Duration::from_millis(999_998) + nanos;
        assert_eq!(now.earliest_wall_of(&early), corrected);
        // Behind when sealed: the earlier time counts.
        let early = moment(1000, "a", 5_000);
        let now = moment(4610, "a", 15_000);
        assert_eq!(now.earliest_wall_of(&early), Duration::from_secs(1000) + nanos);
        // Clock not set, or another boot.
        for now in [moment(1010, "a", 15_000), moment(5, "b", 1)] {
            assert_eq!(now.earliest_wall_of(&early), Duration::from_secs(1000) + nanos);
        }
    }
}
