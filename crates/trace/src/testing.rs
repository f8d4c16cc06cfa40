//! Builds small traces for tests.

use super::model::{
    FORMAT, FetchClass, FetchOutcome, FetchRow, FileRow, HostInfo, Mark, Rows, Segment,
    SegmentKind, Served, SnapshotInfo, Tier, TouchRow, Trace, VERSION,
};
use super::totals::totals;

/// A first touch of the first file.
pub(super) fn touch(at: i64, wait: i64, tier: Tier) -> TouchRow {
    TouchRow { at, wait, file: 0, tier, offset: 0, bytes: 4096, fetch: -1, first: true }
}

/// A trace with one file that waits for one fetch, after which the program runs.
pub fn small() -> Trace {
    let fetch = FetchRow {
        queued: 11,
        sent: 12,
        first_byte: 30,
        received: 35,
        ready: 39,
        class: FetchClass::Demand,
        snapshot: 0,
        groups: 1,
        bytes: 1000,
        outcome: FetchOutcome::Ok,
        file: 0,
    };
    let segment = |from, to, kind, touch, fetch, what: &str| Segment {
        from,
        to,
        kind,
        touch,
        fetch,
        what: what.to_owned(),
    };
    let mut trace = Trace {
        format: FORMAT.to_owned(),
        version: VERSION,
        title: "true".to_owned(),
        command: vec!["inlay".to_owned()],
        recorded: "2026-01-01T00:00:00Z".to_owned(),
        host: HostInfo { kernel: "6".to_owned(), cores: 2 },
        inlay: "0".to_owned(),
        snapshots: vec![SnapshotInfo {
            id: "img-1".to_owned(),
            name: Some("base".to_owned()),
            store: "s3://b".to_owned(),
            groups: 1,
            files: 2,
            size: 3000,
        }],
        duration: 100,
        ready: Some(60),
        ready_by: Some("exit 0".to_owned()),
        dropped: 0,
        marks: vec![Mark { at: 0, name: "begin".to_owned(), detail: String::new() }],
        files: vec![FileRow("/bin/true".to_owned(), 0, 3000)],
        touches: Rows::of(vec![TouchRow { fetch: 0, ..touch(10, 30, Tier::Store) }]),
        fetches: Rows::of(vec![fetch]),
        served: Served { requests: 5, time: 50, reads: 1 },
        path: vec![
            segment(0, 10, SegmentKind::Runtime, -1, -1, "the sandbox is made"),
            segment(10, 40, SegmentKind::Store, 0, 0, "/bin/true"),
            segment(40, 60, SegmentKind::Running, -1, -1, "the program runs"),
        ],
        totals: super::model::Totals::default(),
    };
    trace.totals = totals(&trace);
    trace
}
