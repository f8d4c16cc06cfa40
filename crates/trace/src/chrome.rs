//! Converts a trace to the Chrome trace format for other viewers ("Trace Event Format": an object
//! with `traceEvents`; complete events `X`, instants `i`, metadata `M`; times in microseconds).

use serde_json::{Value, json};

use super::model::{FetchClass, Tier, Trace};

/// Process ids, which viewers show as groups of rows.
const PATH: u64 = 1;
const READS: u64 = 2;
const FETCHES: u64 = 3;

/// Returns `trace` in the Chrome trace format.
pub fn chrome(trace: &Trace) -> Value {
    let mut events = vec![
        name("process_name", PATH, None, "critical path"),
        name("process_name", READS, None, "reads"),
        name("process_name", FETCHES, None, "fetches"),
        name("thread_name", PATH, Some(1), "waited for"),
    ];
    for segment in &trace.path {
        let (from, to) = (signed(segment.from), signed(segment.to));
        events.push(complete(
            (PATH, 1),
            (from, to - from),
            (&segment.what, segment.kind.name()),
            &json!({ "touch": segment.touch, "fetch": segment.fetch }),
        ));
    }
    reads(trace, &mut events);
    fetches(trace, &mut events);
    for mark in &trace.marks {
        events.push(json!({
            "name": mark.name, "cat": "mark", "ph": "i", "s": "g", "ts": mark.at, "pid": PATH,
            "tid": 1, "args": { "detail": mark.detail },
        }));
    }
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "title": trace.title, "recorded": trace.recorded, "inlay": trace.inlay,
            "ready": trace.ready, "dropped": trace.dropped,
        },
    })
}

fn reads(trace: &Trace, events: &mut Vec<Value>) {
    for tier in Tier::ALL {
        let mut lanes = Lanes::default();
        let rows = trace.touches.rows.iter().filter(|row| row.tier == tier);
        for row in rows {
            let thread = lane_of(tier.code(), lanes.take(row.at, row.end()));
            let file = trace.file(row.file).map_or("a file", |file| &file.0);
            let args = json!({
                "offset": row.offset, "bytes": row.bytes, "fetch": row.fetch, "first": row.first,
            });
            events.push(complete((READS, thread), (row.at, row.wait), (file, tier.name()), &args));
        }
        lanes.named(READS, tier.code(), tier.name(), events);
    }
}

fn fetches(trace: &Trace, events: &mut Vec<Value>) {
    for class in FetchClass::ALL {
        let mut lanes = Lanes::default();
        let rows = trace.fetches.rows.iter().enumerate();
        for (place, row) in rows.filter(|(_, row)| row.class == class && row.sent >= 0) {
            // Fetches still in flight extend to the end.
            let end = if row.ready < 0 { signed(trace.duration) } else { row.end() };
            let thread = lane_of(class.code(), lanes.take(row.sent, end));
            let file = trace.file(row.file).map_or(class.name(), |file| &file.0);
            let args = json!({
                "fetch": place, "queued": row.queued, "first_byte": row.first_byte,
                "received": row.received, "groups": row.groups, "bytes": row.bytes,
                "outcome": row.outcome.code(),
            });
            let times = (row.sent, (end - row.sent).max(0));
            events.push(complete((FETCHES, thread), times, (file, class.name()), &args));
        }
        lanes.named(FETCHES, class.code(), class.name(), events);
    }
}

/// Assigns events to rows without overlap: viewers treat overlapping events in one row as nested.
#[derive(Default)]
struct Lanes(Vec<i64>);

impl Lanes {
    /// Returns the first row that is free at `from`, and occupies it until `to`.
    fn take(&mut self, from: i64, to: i64) -> usize {
        let free = self.0.iter().position(|end| *end <= from);
        let lane = free.unwrap_or_else(|| {
            self.0.push(0);
            self.0.len() - 1
        });
        if let Some(end) = self.0.get_mut(lane) {
            *end = to.max(from);
        }
        lane
    }

    fn named(&self, process: u64, code: i64, name_of: &str, events: &mut Vec<Value>) {
        for lane in 0..self.0.len() {
            events.push(name("thread_name", process, Some(lane_of(code, lane)), name_of));
        }
    }
}

/// Thread id of a row. Rows of one sort are adjacent.
fn lane_of(code: i64, lane: usize) -> u64 {
    let code = u64::try_from(code).unwrap_or(0);
    (code + 1) * 100_000 + lane as u64
}

fn complete(
    (process, thread): (u64, u64),
    (at, duration): (i64, i64),
    (what, category): (&str, &str),
    args: &Value,
) -> Value {
    json!({
        "name": what, "cat": category, "ph": "X", "ts": at, "dur": duration, "pid": process,
        "tid": thread, "args": args,
    })
}

fn name(what: &str, process: u64, thread: Option<u64>, name: &str) -> Value {
    let mut event = json!({
        "name": what, "ph": "M", "pid": process, "args": { "name": name },
    });
    if let (Some(thread), Some(event)) = (thread, event.as_object_mut()) {
        event.insert("tid".to_owned(), thread.into());
    }
    event
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::model::Rows;
    use crate::testing::{small, touch};

    /// Checks the fields that the format requires of each type of event, and that rows are named
    /// and free of overlaps.
    fn check(value: &Value) {
        let events = value["traceEvents"].as_array().unwrap();
        let mut named = BTreeSet::new();
        let mut rows: BTreeMap<(u64, u64), Vec<(i64, i64)>> = BTreeMap::new();
        for event in events {
            let process = event["pid"].as_u64().unwrap();
            assert!(event["name"].is_string());
            match event["ph"].as_str().unwrap() {
                "M" => {
                    assert!(event["args"]["name"].is_string());
                    named.insert((process, event["tid"].as_u64()));
                }
                "X" => {
                    let (at, time) =
                        (event["ts"].as_i64().unwrap(), event["dur"].as_i64().unwrap());
                    assert!(time >= 0 && event["cat"].is_string());
                    let thread = event["tid"].as_u64().unwrap();
                    rows.entry((process, thread)).or_default().push((at, at + time));
                }
                "i" => assert!(event["ts"].is_i64() && event["s"] == "g"),
                other => panic!("{other}"),
            }
        }
        for ((process, thread), mut spans) in rows {
            assert!(named.contains(&(process, None)) && named.contains(&(process, Some(thread))));
            spans.sort_unstable();
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
        }
    }

    #[test]
    fn the_output_follows_the_trace_event_format() {
        let mut trace = small();
        check(&chrome(&trace));
        let rows = [(0, 10), (5, 10), (6, 1), (12, 0), (15, 5)];
        let rows = rows.map(|(at, wait)| touch(at, wait, Tier::Store));
        trace.touches = Rows::of(rows.to_vec());
        let value = chrome(&trace);
        check(&value);
        let events = value["traceEvents"].as_array().unwrap();
        let of = |category: &str| events.iter().filter(|one| one["cat"] == category).count();
        // Segments of the path have their kind as category.
        assert_eq!((of("store"), of("demand"), of("mark"), of("running")), (6, 1, 1, 1));
    }
}
