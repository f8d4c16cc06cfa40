//! Rate-limits log lines, so that a failing store, or a damaged index that a program keeps reading,
//! cannot fill the log.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Maximum log lines per period.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// Limits log lines per period.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    period: Mutex<Option<Period>>,
}

#[derive(Debug)]
struct Period {
    began: Instant,
    written: u32,
    held_back: u64,
}

/// Whether to write a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Write the line, with the number suppressed before it.
    Write {
        /// Lines suppressed in the last period.
        held_back: u64,
    },
    /// Suppress the line.
    HoldBack,
}

impl LogLimiter {
    /// Decides whether to write a line at `now`.
    pub(crate) fn line(&self, now: Instant) -> Line {
        let mut guard = self.period.lock();
        match guard.as_mut() {
            Some(period) if now.duration_since(period.began) < PERIOD => {
                if period.written < LINES {
                    period.written += 1;
                    Line::Write { held_back: 0 }
                } else {
                    period.held_back += 1;
                    Line::HoldBack
                }
            }
            last => {
                let held_back = last.map_or(0, |period| period.held_back);
                *guard = Some(Period { began: now, written: 1, held_back: 0 });
                Line::Write { held_back }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_past_the_limit_are_held_back_and_counted() {
        let (limiter, start) = (LogLimiter::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(limiter.line(start), Line::Write { held_back: 0 });
        }
        for _ in 0..7 {
            assert_eq!(limiter.line(start + PERIOD / 2), Line::HoldBack);
        }
        assert_eq!(limiter.line(start + PERIOD), Line::Write { held_back: 7 });
        assert_eq!(limiter.line(start + PERIOD), Line::Write { held_back: 0 });
    }
}
