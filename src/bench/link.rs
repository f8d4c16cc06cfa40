//! The links that starts are measured over, and how quick a start over one could be at best.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChoice {
    /// The user's own store, over whatever link there is to it.
    Own,
    /// The test kit's store behind a link that its proxy shapes: `zone`, `region`, `wan`, `none`, or
    /// `LATENCY,BANDWIDTH[,JITTER]`.
    Shaped(String),
}

/// What a link can do, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkFigures {
    /// Seconds from a request to the first byte of its answer.
    pub latency: f64,
    /// Bytes a second; none if it is not limited.
    pub bandwidth: Option<f64>,
}

impl LinkFigures {
    /// Seconds of a start that knows what it needs and asks for all of it at once: one answer says what
    /// there is, one brings everything, and the program runs as it does on a warm local directory.
    pub fn ideal(&self, needed_bytes: u64, native: f64) -> f64 {
        // Exact below 8 PiB.
        #[allow(clippy::cast_precision_loss)]
        let needed = needed_bytes as f64;
        2.0 * self.latency + self.bandwidth.map_or(0.0, |rate| needed / rate) + native
    }
}

impl fmt::Display for LinkFigures {
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
    fn the_ideal_is_two_latencies_the_bytes_and_the_native_time() {
        let wan = LinkFigures { latency: 0.05, bandwidth: Some(25e6) };
        assert!((wan.ideal(25_000_000, 0.4) - 1.5).abs() < 1e-9);
        let free = LinkFigures { latency: 0.0, bandwidth: None };
        assert!((free.ideal(u64::MAX, 0.4) - 0.4).abs() < 1e-9);
    }
}
