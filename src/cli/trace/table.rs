//! Formats a trace as text: critical path, longest waits, fetches and touches.

use std::io::{self, Write};

use inlay_trace::{FetchClass, SegmentKind, Tier, Totals, TouchRow, Trace, totals};

use crate::cli::output::{bytes, escaped, table as columns};

/// Number of longest waits escaped.
const WAITS: usize = 15;

/// Writes all sections.
pub(super) fn table(out: &mut dyn Write, trace: &Trace) -> io::Result<()> {
    // Recompute the totals: those in the file are untrusted.
    let totals = totals(trace);
    head(out, trace)?;
    path(out, trace, &totals)?;
    waits(out, trace)?;
    fetches(out, &totals)?;
    touches(out, trace, &totals)?;
    marks(out, trace)
}

fn head(out: &mut dyn Write, trace: &Trace) -> io::Result<()> {
    let ready = match (trace.ready, &trace.ready_by) {
        (Some(at), Some(by)) => format!("after {} ({})", millis(at), escaped(by.as_bytes())),
        (Some(at), None) => format!("after {}", millis(at)),
        (None, _) => format!("never; recorded for {}", millis(trace.duration)),
    };
    let host =
        format!("kernel {}, {} cores", escaped(trace.host.kernel.as_bytes()), trace.host.cores);
    let mut rows = vec![
        vec!["trace".to_owned(), escaped(trace.title.as_bytes())],
        vec!["ready".to_owned(), ready],
        vec!["host".to_owned(), host],
    ];
    for snapshot in &trace.snapshots {
        let name = snapshot.name.as_deref().unwrap_or("-");
        let text = format!("{name} ({}) from {}", snapshot.id, snapshot.store);
        rows.push(vec!["snapshot".to_owned(), escaped(text.as_bytes())]);
    }
    if trace.dropped > 0 {
        let text = format!(
            "{} EVENTS: there was no room for them, and what follows is not all; --events keeps more",
            trace.dropped
        );
        rows.push(vec!["DROPPED".to_owned(), text]);
    }
    columns(out, &rows)
}

fn path(out: &mut dyn Write, trace: &Trace, totals: &Totals) -> io::Result<()> {
    let all = trace.path_end().max(1);
    let mut rows = vec![row(["CRITICAL PATH", "TIME", "SHARE"])];
    for kind in SegmentKind::ALL {
        let time = totals.path.get(kind.name()).copied().unwrap_or(0);
        rows.push(vec![kind.name().to_owned(), millis(time), share(time, all)]);
    }
    rows.push(vec!["all".to_owned(), millis(trace.path_end()), share(trace.path_end(), all)]);
    section(out, &rows)
}

fn waits(out: &mut dyn Write, trace: &Trace) -> io::Result<()> {
    let mut waits: Vec<&TouchRow> = trace.touches.rows.iter().filter(|row| row.wait > 0).collect();
    waits.sort_by_key(|row| (std::cmp::Reverse(row.wait), row.at));
    waits.truncate(WAITS);
    if waits.is_empty() {
        return Ok(());
    }
    let mut rows = vec![row(["LONGEST WAIT", "AT", "TIER", "FETCHED AS", "BYTES", "FILE"])];
    let fetch = |place: i64| usize::try_from(place).ok().and_then(|at| trace.fetches.rows.get(at));
    let file = |place: i64| usize::try_from(place).ok().and_then(|at| trace.files.get(at));
    rows.extend(waits.into_iter().map(|wait| {
        vec![
            millis(unsigned(wait.wait)),
            millis(unsigned(wait.at)),
            wait.tier.name().to_owned(),
            fetch(wait.fetch).map_or("-", |fetch| fetch.class.name()).to_owned(),
            bytes(unsigned(wait.bytes)),
            file(wait.file).map_or_else(|| "-".to_owned(), |file| escaped(file.0.as_bytes())),
        ]
    }));
    section(out, &rows)
}

fn fetches(out: &mut dyn Write, totals: &Totals) -> io::Result<()> {
    if totals.fetches.is_empty() {
        return Ok(());
    }
    let mut rows = vec![row(["FETCHES", "REQUESTS", "BYTES", "FAILED"])];
    for class in FetchClass::ALL {
        if let Some(sum) = totals.fetches.get(class.name()) {
            rows.push(vec![
                class.name().to_owned(),
                sum.requests.to_string(),
                bytes(sum.bytes),
                sum.failed.to_string(),
            ]);
        }
    }
    section(out, &rows)
}

fn touches(out: &mut dyn Write, trace: &Trace, totals: &Totals) -> io::Result<()> {
    let mut rows = vec![row(["TOUCHES", "FILES", "LATER WAITS", "WAITED", "BYTES"])];
    for tier in Tier::ALL {
        let sum = totals.touches.get(tier.name()).copied().unwrap_or_default();
        rows.push(vec![
            tier.name().to_owned(),
            sum.first.to_string(),
            sum.later.to_string(),
            millis(sum.wait),
            bytes(sum.bytes),
        ]);
    }
    section(out, &rows)?;
    let served = &trace.served;
    writeln!(
        out,
        "\n{} requests of the kernel, {} of them reads; the daemon's threads were busy with them for {}",
        served.requests,
        served.reads,
        millis(served.time)
    )
}

fn marks(out: &mut dyn Write, trace: &Trace) -> io::Result<()> {
    let mut rows = vec![row(["MARK", "AT", "OF"])];
    let of = |text: &str| escaped(text.as_bytes());
    let marks = trace.marks.iter();
    rows.extend(marks.map(|mark| vec![of(&mark.name), millis(mark.at), of(&mark.detail)]));
    section(out, &rows)
}

fn section(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    writeln!(out)?;
    columns(out, rows)
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Formats microseconds as `12.3 ms`, rounded down.
fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

fn share(part: u64, all: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(all.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_trace::small;

    #[test]
    fn it_says_where_the_time_went() {
        let mut trace = small();
        trace.dropped = 3;
        trace.title = "evil\x1b[2J".to_owned();
        let mut out = Vec::new();
        table(&mut out, &trace).unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in [
            "trace     evil\\u{1b}[2J",
            "DROPPED   3 EVENTS",
            "store          0.0 ms  50.0 %",
            "all            0.0 ms  100.0 %",
            "0.0 ms        0.0 ms  store  demand      4.0K   /bin/true",
            "demand   1         1000   0",
            "store      1      0            0.0 ms  4.0K",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
