//! Describes the links of a measurement and computes the ideal start over one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A link to measure over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChoice {
    /// The existing link to the user's own store.
    Own,
    /// The test kit's store behind its shaping proxy: `zone`, `region`, `wan`, `none`, or
    /// `LATENCY,BANDWIDTH[,JITTER]`.
    Shaped(String),
}

/// Latency and bandwidth of a link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkSpeed {
    /// Seconds from a request to the first byte of its response.
    pub latency: f64,
    /// Bytes per second; `None` if unlimited.
    pub bandwidth: Option<f64>,
}

impl LinkSpeed {
    /// Merges two measurements of one link: the lower latency and the higher bandwidth.
    #[must_use]
    pub fn or_better(&self, other: &Self) -> Self {
        let bandwidth = match (self.bandwidth, other.bandwidth) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
        Self { latency: self.latency.min(other.latency), bandwidth }
    }

    /// Returns the ideal start in seconds: one round trip for the index, one for all needed bytes
    /// at once, and the run time on a warm local directory.
    pub fn ideal(&self, needed_bytes: u64, native: f64) -> f64 {
        // Exact below 8 PiB.
        #[allow(clippy::cast_precision_loss)]
        let needed = needed_bytes as f64;
        2.0 * self.latency + self.bandwidth.map_or(0.0, |rate| needed / rate) + native
    }
}

impl fmt::Display for LinkSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} ms", self.latency * 1e3)?;
        match self.bandwidth {
            None => write!(f, ", no limit"),
            Some(rate) if rate >= 1.25e8 => write!(f, ", {:.1} Gbit/s", rate * 8.0 / 1e9),
            Some(rate) => write!(f, ", {:.0} Mbit/s", rate * 8.0 / 1e6),
        }
    }
}

impl FromStr for LinkChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "own" { Self::Own } else { Self::Shaped(text.to_owned()) })
    }
}

impl fmt::Display for LinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Shaped(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_measurement_without_a_rate_does_not_hide_the_rate() {
        let measured = LinkSpeed { latency: 0.02, bandwidth: Some(25e6) };
        let small = LinkSpeed { latency: 0.01, bandwidth: None };
        let both = LinkSpeed { latency: 0.01, bandwidth: Some(25e6) };
        assert_eq!(measured.or_better(&small), both);
        assert_eq!(small.or_better(&measured), both);
    }

    #[test]
    fn the_ideal_is_two_latencies_the_bytes_and_the_native_time() {
        let wan = LinkSpeed { latency: 0.05, bandwidth: Some(25e6) };
        assert!((wan.ideal(25_000_000, 0.4) - 1.5).abs() < 1e-9);
        let free = LinkSpeed { latency: 0.0, bandwidth: None };
        assert!((free.ideal(u64::MAX, 0.4) - 0.4).abs() < 1e-9);
    }
}
