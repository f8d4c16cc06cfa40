//! Computes the critical path: the causes of waiting from the beginning of a start until readiness.
//!
//! It is found backwards, as in project scheduling: the wait that ended last before a moment is its
//! cause. Waits of readers take precedence, then reads served by the daemon from this host, then
//! the parts of the start known by their marks; in the remaining time the program itself ran.
//!
//! Overlapping waits count as one stretch of waiting, because it is unknown which of several
//! threads the start depended on. Waits that had not ended at readiness do not count.

use super::model::{FetchClass, FetchRow, Segment, SegmentKind, Tier, TouchRow, Trace};

/// A time span of a known activity, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Start time.
    pub(super) from: u64,
    /// End time.
    pub(super) to: u64,
    /// Cause.
    pub(super) kind: SegmentKind,
    /// Description for display.
    pub(super) what: String,
}

/// A candidate for a segment of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wait {
    from: u64,
    to: u64,
    kind: SegmentKind,
    touch: i64,
    fetch: i64,
    /// Position among the spans, if it stems from one.
    span: Option<usize>,
}

/// Computes the path of `trace` from its rows. `spans` are known parts of the start, and
/// `first_exec` is the time when the program began to run. Only touches accepted by `counts` are
/// considered.
pub(super) fn critical_path(
    trace: &Trace,
    spans: &[Span],
    first_exec: Option<u64>,
    counts: impl Fn(&TouchRow) -> bool,
) -> Vec<Segment> {
    let end = trace.path_end();
    let mut waiting = Vec::new();
    let mut served = Vec::new();
    for (place, row) in trace.touches.rows.iter().enumerate() {
        let Some(wait) = of_touch(place, row).filter(|_| counts(row)) else { continue };
        match wait.kind {
            SegmentKind::Served => served.push(wait),
            _ => waiting.push(wait),
        }
    }
    let fetched = trace.fetches.rows.iter().enumerate();
    let fetched = fetched.filter_map(|(place, row)| of_index(place, row)).collect();
    let of_kind = |kind: SegmentKind| {
        let spans = spans.iter().enumerate().filter(move |(_, span)| span.kind == kind);
        spans
            .map(|(place, span)| Wait {
                from: span.from,
                to: span.to.min(end),
                kind,
                touch: -1,
                fetch: -1,
                span: Some(place),
            })
            .collect::<Vec<_>>()
    };
    let attach = of_kind(SegmentKind::Attach);
    let runtime = of_kind(SegmentKind::Runtime);
    let before = first_exec.unwrap_or(0).min(end);
    let base = [(0, before, SegmentKind::Runtime), (before, end, SegmentKind::Running)];
    let base =
        base.map(|(from, to, kind)| Wait { from, to, kind, touch: -1, fetch: -1, span: None });
    let mut path: Vec<Wait> = base.into_iter().filter(|wait| wait.from < wait.to).collect();
    for layer in [runtime, attach, fetched, served, waiting] {
        path = over(stretches(layer, end), path);
    }
    path.into_iter().map(|wait| segment(trace, spans, wait)).collect()
}

/// Converts a touch to a wait.
fn of_touch(place: usize, row: &TouchRow) -> Option<Wait> {
    let kind = match row.tier {
        Tier::Store => SegmentKind::Store,
        Tier::InFlight => SegmentKind::InFlight,
        Tier::Index | Tier::Cache | Tier::Kernel => SegmentKind::Served,
    };
    let (from, to) = (u64::try_from(row.at.max(0)).ok()?, u64::try_from(row.end()).ok()?);
    let touch = i64::try_from(place).ok()?;
    Some(Wait { from, to, kind, touch, fetch: row.fetch, span: None })
}

/// Converts the fetch of an index to a wait.
fn of_index(place: usize, row: &FetchRow) -> Option<Wait> {
    if row.class != FetchClass::Index || row.sent < 0 {
        return None;
    }
    let (from, to) = (u64::try_from(row.sent).ok()?, u64::try_from(row.end()).ok()?);
    let fetch = i64::try_from(place).ok()?;
    Some(Wait { from, to, kind: SegmentKind::Attach, touch: -1, fetch, span: None })
}

/// Returns one sort of waits in order and without overlap: starting at `end`, always the wait that
/// ended last.
fn stretches(mut waits: Vec<Wait>, end: u64) -> Vec<Wait> {
    waits.retain(|wait| wait.from < wait.to && wait.to <= end);
    // Among waits with the same end, the longest one.
    waits.sort_by_key(|wait| (std::cmp::Reverse(wait.to), wait.from));
    let mut found: Vec<Wait> = Vec::new();
    let mut begun = end;
    for wait in waits {
        let to = wait.to.min(begun);
        if wait.from < to {
            begun = wait.from;
            found.push(Wait { to, ..wait });
        }
    }
    found.reverse();
    found
}

/// Overlays `upper` on `lower`. Both are in order and without overlap, and so is the result.
fn over(upper: Vec<Wait>, lower: Vec<Wait>) -> Vec<Wait> {
    let mut out = Vec::with_capacity(upper.len() + lower.len());
    let mut upper = upper.into_iter().peekable();
    for below in lower {
        let mut from = below.from;
        while let Some(above) = upper.peek().copied() {
            if above.from >= below.to {
                break;
            }
            if above.from > from {
                out.push(Wait { from, to: above.from, ..below });
            }
            from = from.max(above.to.min(below.to));
            if above.to > below.to {
                // The remainder covers the next ones.
                out.push(Wait { from: above.from.max(below.from), to: below.to, ..above });
                if let Some(rest) = upper.peek_mut() {
                    rest.from = below.to;
                }
                break;
            }
            out.push(above);
            upper.next();
        }
        if from < below.to {
            out.push(Wait { from, to: below.to, ..below });
        }
    }
    joined(out)
}

/// Merges neighbours that differ only in time.
fn joined(waits: Vec<Wait>) -> Vec<Wait> {
    let mut out: Vec<Wait> = Vec::with_capacity(waits.len());
    for wait in waits {
        match out.last_mut() {
            Some(last) if Wait { from: wait.from, to: wait.to, ..*last } == wait => {
                last.to = wait.to;
            }
            _ => out.push(wait),
        }
    }
    out
}

fn segment(trace: &Trace, spans: &[Span], wait: Wait) -> Segment {
    let Wait { from, to, kind, touch, fetch, span } = wait;
    let file = trace.touch(touch).and_then(|row| trace.file(row.file));
    let snapshot = || {
        let place = trace.fetch(fetch)?.snapshot;
        let snapshot = trace.snapshots.get(usize::try_from(place).ok()?)?;
        Some(snapshot.name.as_ref().unwrap_or(&snapshot.id).clone())
    };
    let what = match (file, span.and_then(|span| spans.get(span)), kind) {
        (Some(file), ..) => file.0.clone(),
        (None, Some(span), _) => span.what.clone(),
        (None, None, SegmentKind::Attach) => {
            format!("the index of {}", snapshot().unwrap_or_else(|| "a snapshot".to_owned()))
        }
        (None, None, SegmentKind::Runtime) => "the sandbox is made".to_owned(),
        (None, None, SegmentKind::Running) => "the program runs".to_owned(),
        (None, None, _) => "a file".to_owned(),
    };
    Segment { from, to, kind, touch, fetch, what }
}

/// Checks that a path extends from 0 to `end` without gaps.
pub(super) fn check(path: &[Segment], end: u64) -> Result<(), String> {
    let mut at = 0;
    for segment in path {
        if segment.from != at || segment.to <= segment.from {
            return Err(format!("the critical path has a gap or an overlap at {at} µs"));
        }
        at = segment.to;
    }
    if at == end {
        Ok(())
    } else {
        Err(format!("the critical path ends at {at} µs, not at {end}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{FetchOutcome, FileRow, Rows};
    use crate::testing::{small, touch};

    fn path_of(rows: Vec<TouchRow>, spans: &[Span], exec: Option<u64>, ready: u64) -> Vec<Segment> {
        let mut trace = small();
        trace.duration = ready + 1000;
        trace.ready = Some(ready);
        trace.files = vec![FileRow("/f".into(), 0, 1)];
        trace.touches = Rows::of(rows);
        trace.fetches = Rows::of(vec![FetchRow {
            queued: -1,
            sent: 3,
            first_byte: 4,
            received: 8,
            ready: 9,
            class: FetchClass::Index,
            snapshot: 0,
            groups: 0,
            bytes: 10,
            outcome: FetchOutcome::Ok,
            file: -1,
        }]);
        critical_path(&trace, spans, exec, |_| true)
    }

    fn kinds(path: &[Segment]) -> Vec<(u64, u64, &'static str)> {
        path.iter().map(|one| (one.from, one.to, one.kind.name())).collect()
    }

    #[test]
    fn overlapping_waits_are_attributed_to_the_one_that_ended_last() {
        let rows = vec![
            touch(100, 50, Tier::Store),
            // Overlaps with the first: one stretch.
            touch(120, 60, Tier::InFlight),
            // Entirely inside another.
            touch(130, 10, Tier::Store),
            touch(190, 5, Tier::Cache),
            // Had not ended at readiness.
            touch(290, 400, Tier::Store),
        ];
        let span = Span { from: 1, to: 20, kind: SegmentKind::Attach, what: "base".into() };
        let path = path_of(rows, &[span], Some(50), 300);
        assert_eq!(
            kinds(&path),
            [
                (0, 1, "runtime"),
                (1, 3, "attach"),
                (3, 9, "attach"),
                (9, 20, "attach"),
                (20, 50, "runtime"),
                (50, 100, "running"),
                (100, 120, "store"),
                (120, 180, "in-flight"),
                (180, 190, "running"),
                (190, 195, "served"),
                (195, 300, "running"),
            ]
        );
        assert_eq!((path[2].fetch, path[2].what.as_str()), (0, "the index of base"));
        assert_eq!((path[7].touch, path[7].what.as_str()), (1, "/f"));
    }

    #[test]
    fn waits_of_readers_take_precedence_over_served_reads() {
        let rows = vec![touch(10, 80, Tier::Cache), touch(20, 10, Tier::Store)];
        let path = path_of(rows, &[], None, 100);
        let expected = [
            (0, 3, "running"),
            (3, 9, "attach"),
            (9, 10, "running"),
            (10, 20, "served"),
            (20, 30, "store"),
            (30, 90, "served"),
            (90, 100, "running"),
        ];
        assert_eq!(kinds(&path), expected);
    }

    fn rows() -> impl Strategy<Value = Vec<TouchRow>> {
        let row = (-50i64..3000, 0i64..500, 0usize..5);
        let row = row.prop_map(|(at, wait, tier)| touch(at, wait, Tier::ALL[tier]));
        prop::collection::vec(row, 0..60)
    }

    fn spans() -> impl Strategy<Value = Vec<Span>> {
        let span = (0u64..3000, 0u64..500, any::<bool>()).prop_map(|(from, len, attach)| {
            let kind = if attach { SegmentKind::Attach } else { SegmentKind::Runtime };
            Span { from, to: from + len, kind, what: "x".into() }
        });
        prop::collection::vec(span, 0..6)
    }

    proptest! {
        /// From 0 to readiness without gap or overlap; a segment names the store exactly where a
        /// reader waited for it.
        #[test]
        fn it_always_sums_to_ready(
            rows in rows(),
            spans in spans(),
            exec in prop::option::of(0u64..4000),
            ready in 0u64..2500,
        ) {
            let path = path_of(rows.clone(), &spans, exec, ready);
            prop_assert_eq!(check(&path, ready), Ok(()));
            let sum: u64 = path.iter().map(|one| one.to - one.from).sum();
            prop_assert_eq!(sum, ready);
            let waits = |kind: &[Tier], at: u64| rows.iter().any(|row| {
                let end = u64::try_from(row.end()).unwrap_or(0);
                let from = u64::try_from(row.at).unwrap_or(0);
                kind.contains(&row.tier) && end <= ready && (from..end).contains(&at)
            });
            for one in &path {
                for at in [one.from, one.to - 1] {
                    let far = [Tier::Store, Tier::InFlight];
                    let is_far = matches!(one.kind, SegmentKind::Store | SegmentKind::InFlight);
                    prop_assert_eq!(waits(&far, at), is_far, "{} {:?}", at, one);
                    let here = [Tier::Index, Tier::Cache, Tier::Kernel];
                    let is_served = one.kind == SegmentKind::Served;
                    prop_assert_eq!(!is_far && waits(&here, at), is_served, "{} {:?}", at, one);
                }
            }
        }
    }
}
