//! Assembles a trace from the events of the daemon and the observations of the command that
//! recorded it.

use std::collections::HashSet;

use super::clock;
use super::model::{FORMAT, FetchRow, HostInfo, Mark, Rows, Totals, TouchRow, Trace, VERSION};
use super::path::{Span, critical_path};
use super::record::TraceEvents;
use super::totals::totals;

/// Mark at which a sandbox's first program runs.
pub const FIRST_EXEC: &str = "first-exec";
/// Mark at which the runtime is asked to run it.
pub const STARTING: &str = "starting";

/// Facts known only to the recording command. Times are nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Title, for display.
    pub title: String,
    /// Arguments of the command.
    pub command: Vec<String>,
    /// Time of the recording, in UTC.
    pub recorded: String,
    /// Start time.
    pub began_ns: u64,
    /// Time of readiness, if reached.
    pub ready_ns: Option<u64>,
    /// Condition for readiness.
    pub ready_by: Option<String>,
    /// Marks: time, name and subject.
    pub marks: Vec<(u64, String, String)>,
    /// The started sandbox, if any.
    pub sandbox: Option<String>,
    /// Snapshots with touches that belong to the start; empty for all.
    pub snapshots: HashSet<String>,
}

/// Assembles the trace.
pub fn assemble(events: TraceEvents, facts: Facts) -> Trace {
    let shift = clock::micros(facts.began_ns, events.began_ns);
    let moved = |at: i64| u64::try_from(at.saturating_add(shift)).unwrap_or(0);
    let since = |ns: u64| u64::try_from(clock::micros(facts.began_ns, ns)).unwrap_or(0);
    let ready = facts.ready_ns.map(since);
    let ended = i64::try_from(events.duration).unwrap_or(i64::MAX);
    let mut marks = vec![Mark { at: 0, name: "begin".to_owned(), detail: String::new() }];
    let daemons = events.marks.into_iter();
    marks.extend(daemons.map(|m| Mark { at: moved(m.at), name: m.name, detail: m.detail }));
    let own = facts.marks.into_iter();
    marks.extend(own.map(|(at, name, detail)| Mark { at: since(at), name, detail }));
    if let Some(at) = ready {
        let detail = facts.ready_by.clone().unwrap_or_default();
        marks.push(Mark { at, name: "ready".to_owned(), detail });
    }
    marks.sort_by_key(|mark| mark.at);
    let spans: Vec<Span> = events
        .spans
        .into_iter()
        .map(|span| Span {
            from: moved(span.from),
            to: moved(span.to),
            kind: span.kind,
            what: span.what,
        })
        .collect();
    let mut trace = Trace {
        format: FORMAT.to_owned(),
        version: VERSION,
        title: facts.title,
        command: facts.command,
        recorded: facts.recorded,
        host: HostInfo {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        },
        inlay: env!("CARGO_PKG_VERSION").to_owned(),
        snapshots: events.snapshots,
        duration: moved(ended).max(ready.unwrap_or(0)),
        ready,
        ready_by: ready.and(facts.ready_by),
        dropped: events.dropped,
        marks,
        files: events.files,
        touches: Rows::of(events.touches.into_iter().map(|row| touch(row, shift)).collect()),
        fetches: Rows::of(events.fetches.into_iter().map(|row| fetch(row, shift)).collect()),
        served: events.served,
        path: Vec::new(),
        totals: Totals::default(),
    };
    let is_own = |trace: &Trace, row: &TouchRow| {
        let snapshot = trace.file(row.file).and_then(|file| trace.snapshots.get(file.1 as usize));
        facts.snapshots.is_empty()
            || snapshot.is_some_and(|snapshot| facts.snapshots.contains(&snapshot.id))
    };
    let exec = facts.sandbox.as_ref().map(|sandbox| first_exec(&mut trace, sandbox, is_own));
    trace.path = critical_path(&trace, &spans, exec, |row| is_own(&trace, row));
    trace.totals = totals(&trace);
    trace
}

/// Determines when the sandbox's first program began to run. The runtime's mark comes only after it
/// has finished all other work, and the program may have read files by then, so an earlier read
/// moves the mark. Without mark and reads, all the time counts as creating the sandbox.
fn first_exec(trace: &mut Trace, sandbox: &str, is_own: impl Fn(&Trace, &TouchRow) -> bool) -> u64 {
    let place = |trace: &Trace, name: &str| {
        trace.marks.iter().position(|mark| mark.name == name && mark.detail == sandbox)
    };
    let at = |trace: &Trace, place: usize| trace.marks.get(place).map(|mark| mark.at);
    let starting = place(trace, STARTING).and_then(|place| at(trace, place));
    let said = place(trace, FIRST_EXEC);
    let Some(starting) = starting else { return trace.path_end() };
    let read = trace.touches.rows.iter().filter(|row| is_own(trace, row));
    let read = read.filter_map(|row| u64::try_from(row.at).ok()).filter(|at| *at >= starting).min();
    let mut first = read.unwrap_or(u64::MAX);
    if let Some(mark) = said.and_then(|place| trace.marks.get_mut(place)) {
        mark.at = mark.at.min(first);
        first = mark.at;
    }
    trace.marks.sort_by_key(|mark| mark.at);
    first.min(trace.path_end())
}

/// Clamps times to the start of the trace.
fn touch(row: TouchRow, shift: i64) -> TouchRow {
    let (at, end) = (row.at.saturating_add(shift), row.end().saturating_add(shift));
    TouchRow { at: at.max(0), wait: (end - at.max(0)).max(0), ..row }
}

fn fetch(row: FetchRow, shift: i64) -> FetchRow {
    let time = |at: i64| if at < 0 { -1 } else { at.saturating_add(shift).max(0) };
    FetchRow {
        queued: time(row.queued),
        sent: time(row.sent),
        first_byte: time(row.first_byte),
        received: time(row.received),
        ready: time(row.ready),
        ..row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FileRow, SegmentKind, Served, Tier};
    use crate::path;
    use crate::record::{EventMark, EventSpan};
    use crate::testing::{small, touch};

    #[test]
    fn times_count_from_the_starts_beginning() {
        let known = small();
        let events = TraceEvents {
            began_ns: 1_000_000,
            duration: 900,
            dropped: 0,
            snapshots: known.snapshots,
            files: vec![FileRow("/f".into(), 0, 1)],
            touches: vec![
                touch(50, 100, Tier::Cache),
                touch(300, 0, Tier::Kernel),
                touch(400, 100, Tier::Store),
            ],
            fetches: known.fetches.rows,
            marks: vec![
                EventMark { at: 250, name: STARTING.into(), detail: "sb".into() },
                EventMark { at: 320, name: FIRST_EXEC.into(), detail: "sb".into() },
                EventMark { at: 300, name: FIRST_EXEC.into(), detail: "another".into() },
            ],
            spans: vec![EventSpan {
                from: 120,
                to: 200,
                kind: SegmentKind::Attach,
                what: "base".into(),
            }],
            served: Served::default(),
        };
        let facts = Facts {
            began_ns: 1_100_000,
            ready_ns: Some(1_800_000),
            ready_by: Some("exit 0".into()),
            sandbox: Some("sb".into()),
            ..Facts::default()
        };
        let trace = assemble(events, facts);
        assert_eq!((trace.ready, trace.duration), (Some(700), 800));
        assert_eq!(trace.touches.rows[0].at, 0);
        assert_eq!(trace.touches.rows[0].wait, 50);
        assert_eq!(trace.touches.rows[2].at, 300);
        assert_eq!(trace.fetches.rows[0].sent, 0);
        path::check(&trace.path, 700).unwrap();
        let kinds: Vec<_> = trace.path.iter().map(|one| (one.from, one.kind.name())).collect();
        let expected = [
            (0, "served"),
            (50, "attach"),
            (100, "runtime"),
            (200, "running"),
            (300, "store"),
            (400, "running"),
        ];
        assert_eq!(kinds, expected);
        let names: Vec<_> = trace.marks.iter().map(|mark| mark.name.as_str()).collect();
        assert_eq!(names, ["begin", STARTING, FIRST_EXEC, FIRST_EXEC, "ready"]);
        assert_eq!(trace.marks[2].at, 200);
        Trace::parse(trace.to_json().unwrap().as_bytes()).unwrap();
    }
}
