//! Recorded starts: a snapshot's groups and the time of each first touch. Reads a compact text
//! format and the JSON that `inlay profile export` prints.
//!
//! ```text
//! inlay-trace 1
//! g BLOB OFFSET STORED:RAW STORED:RAW ...    groups that lie one after the other, in bytes
//! f FIRST COUNT                              groups that belong to one file
//! t MICROS:GROUP MICROS:GROUP ...            touches: time since the last one, group
//! ```

use std::collections::HashSet;
use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;

use crate::scenario::Stored;

const HEADER: &str = "inlay-trace 1";
/// Maximum groups, or touches, per line.
const LINE: usize = 12;

/// A recorded start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The groups of the snapshot, by number.
    pub groups: Vec<Stored>,
    /// Large files: ranges of groups that belong to one file alone.
    pub files: Vec<Range<u32>>,
    /// First touches: delay since the previous one, and the group.
    pub touches: Vec<(Duration, u32)>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A line is malformed: its number and text.
    #[error("line {0} is not a line of a trace: {1:?}")]
    Line(usize, String),
    /// Not the expected JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It names a group that does not exist.
    #[error("no group {0}")]
    Group(u32),
}

#[derive(Deserialize)]
struct Json {
    groups: Vec<JsonGroup>,
    touches: Vec<JsonTouch>,
}

#[derive(Deserialize)]
struct JsonGroup {
    #[serde(flatten)]
    stored: Stored,
    owner: Option<u32>,
}

#[derive(Deserialize)]
struct JsonTouch {
    group: u32,
    at_us: u64,
}

impl Trace {
    /// Reads the JSON of a recorded start.
    pub fn from_json(json: &str) -> Result<Self, TraceError> {
        let json: Json = serde_json::from_str(json)?;
        let mut trace = Self::default();
        let mut owner = None;
        for (number, group) in (0u32..).zip(json.groups) {
            match (&mut trace.files.last_mut(), group.owner) {
                (Some(file), Some(_)) if group.owner == owner && file.end == number => {
                    file.end += 1;
                }
                (_, Some(_)) => trace.files.push(number..number + 1),
                (_, None) => {}
            }
            owner = group.owner;
            trace.groups.push(group.stored);
        }
        let mut touches = json.touches;
        touches.sort_by_key(|touch| touch.at_us);
        let (mut met, mut at) = (HashSet::new(), 0);
        for touch in touches {
            if met.insert(touch.group) {
                let think = Duration::from_micros(touch.at_us - at);
                trace.touches.push((think, touch.group));
                at = touch.at_us;
            }
        }
        trace.checked()
    }

    fn checked(self) -> Result<Self, TraceError> {
        let is_known = |group: u32| usize::try_from(group).is_ok_and(|at| at < self.groups.len());
        let touched = self.touches.iter().map(|(_, group)| *group);
        let filed = self.files.iter().map(|file| file.end.saturating_sub(1));
        match touched.chain(filed).find(|group| !is_known(*group)) {
            Some(group) => Err(TraceError::Group(group)),
            None => Ok(self),
        }
    }

    /// Parses the compact format.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut trace = Self::default();
        let mut lines = (1..).zip(text.lines());
        match lines.next() {
            Some((_, HEADER)) => {}
            other => return Err(TraceError::Line(1, other.unwrap_or_default().1.into())),
        }
        for (number, line) in lines {
            let wrong = || TraceError::Line(number, line.into());
            trace.line(line).ok_or_else(wrong)?;
        }
        trace.checked()
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("g") => {
                let blob = words.next()?.parse().ok()?;
                let mut offset = words.next()?.parse().ok()?;
                for word in words {
                    let (stored_len, raw_len) = pair(word)?;
                    self.groups.push(Stored { blob, offset, stored_len, raw_len });
                    offset += u64::from(stored_len);
                }
            }
            Some("f") => {
                let first: u32 = words.next()?.parse().ok()?;
                let count: u32 = words.next()?.parse().ok()?;
                self.files.push(first..first.checked_add(count)?);
            }
            Some("t") => {
                for word in words {
                    let (micros, group) = pair(word)?;
                    self.touches.push((Duration::from_micros(micros), group));
                }
            }
            Some(word) if !word.starts_with('#') => return None,
            _ => {}
        }
        Some(())
    }

    /// Formats as the compact format.
    pub fn to_text(&self) -> String {
        // Writing to a `String` never fails.
        let mut text = format!("{HEADER}\n");
        let mut at = None;
        let mut in_line = 0;
        for group in &self.groups {
            if at != Some((group.blob, group.offset)) || in_line == LINE {
                write!(text, "{}g {} {}", newline(in_line), group.blob, group.offset).unwrap();
                in_line = 0;
            }
            write!(text, " {}:{}", group.stored_len, group.raw_len).unwrap();
            in_line += 1;
            at = Some((group.blob, group.offset + u64::from(group.stored_len)));
        }
        text.push_str(newline(in_line));
        for file in &self.files {
            writeln!(text, "f {} {}", file.start, file.len()).unwrap();
        }
        for touches in self.touches.chunks(LINE) {
            let words =
                touches.iter().map(|(think, group)| format!(" {}:{group}", think.as_micros()));
            writeln!(text, "t{}", words.collect::<String>()).unwrap();
        }
        text
    }

    /// Returns the stored bytes of all touched groups.
    pub fn needed(&self) -> u64 {
        let lens = self.touches.iter().map(|(_, group)| self.groups[*group as usize].stored_len);
        lens.map(u64::from).sum()
    }
}

fn newline(in_line: usize) -> &'static str {
    if in_line > 0 { "\n" } else { "" }
}

fn pair<A: std::str::FromStr, B: std::str::FromStr>(word: &str) -> Option<(A, B)> {
    let (one, other) = word.split_once(':')?;
    Some((one.parse().ok()?, other.parse().ok()?))
}

/// Generates a start that was not recorded: clusters of neighbouring groups, touched for the most
/// part and in roughly ascending order, with jumps between clusters.
pub fn synthetic(seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let count = rng.u32(1300..4000);
    let mut trace = Trace::default();
    let mut offset = 0;
    for _ in 0..count {
        // Lognormal, since the sum of uniform draws is nearly normal: 180 KB on average.
        let normal: f64 = (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
        let stored = (150_000.0 * (0.6 * normal).exp()).clamp(2000.0, 524_288.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let stored_len = stored as u32;
        trace.groups.push(Stored { blob: 0, offset, stored_len, raw_len: 524_288 });
        offset += u64::from(stored_len);
    }
    let (touches, mut met) = (rng.usize(250..450), HashSet::new());
    while trace.touches.len() < touches {
        let (start, len) = (rng.u32(0..count), rng.u32(1..30));
        let mut cluster: Vec<u32> = (start..(start + len).min(count)).collect();
        for place in 0..cluster.len() {
            let other = (place + rng.usize(0..8)).min(cluster.len() - 1);
            cluster.swap(place, other);
        }
        for group in cluster {
            if rng.f64() < 0.85 && met.insert(group) {
                let think = Duration::from_micros(200 + rng.u64(0..2800));
                trace.touches.push((think, group));
            }
        }
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_round_trip_through_their_text() {
        for seed in 0..5 {
            let mut trace = synthetic(seed);
            trace.files = vec![3..9, 20..22];
            trace.groups[700].offset += 5;
            let text = trace.to_text();
            assert_eq!(Trace::parse(&text).unwrap(), trace);
            assert!(text.len() < 60 << 10, "{}", text.len());
        }
    }

    #[test]
    fn json_of_a_recorded_start_is_taken() {
        let json = r#"{"groups": [
            {"blob": 0, "offset": 0, "stored_len": 5, "raw_len": 9, "owner": 4},
            {"blob": 0, "offset": 5, "stored_len": 5, "raw_len": 9, "owner": 4},
            {"blob": 1, "offset": 0, "stored_len": 6, "raw_len": 9, "owner": 7},
            {"blob": 1, "offset": 6, "stored_len": 6, "raw_len": 9}
        ], "touches": [{"group": 3, "at_us": 70}, {"group": 0, "at_us": 50}, {"group": 3, "at_us": 90}]}"#;
        let trace = Trace::from_json(json).unwrap();
        assert_eq!(trace.files, [0..2, 2..3]);
        assert_eq!(trace.touches, [(Duration::from_micros(50), 0), (Duration::from_micros(20), 3)]);
        assert_eq!(Trace::parse(&trace.to_text()).unwrap(), trace);
        assert_eq!(trace.needed(), 11);
    }

    #[test]
    fn malformed_traces_are_refused() {
        let texts = [
            "",
            "inlay-trace 2\n",
            "inlay-trace 1\nx 1\n",
            "inlay-trace 1\ng 0 0 5\n",
            "inlay-trace 1\nt 5:0\n",
        ];
        for text in texts {
            assert!(Trace::parse(text).is_err(), "{text:?}");
        }
    }
}
