//! Renders a report as Markdown with aligned columns.

use std::fmt::Write as _;

use super::{Cell, LinkReport, Outcome, Report, ScenarioReport};
use crate::link::LinkSpeed;
use crate::method::HostState;
use crate::stats::Spread;

const NOTHING: &str = "–";

/// Renders the whole report.
pub fn markdown(report: &Report) -> String {
    let mut out = String::from("# Start-up latency\n\n");
    let c = &report.conditions;
    wrote(writeln!(
        out,
        "inlay {}, Linux {}, {} cores, {}, store {}; {} of each start, in random order, seed {}; {:.0} s in all.",
        c.inlay, c.kernel, c.cores, c.runtime, c.store, c.runs, c.seed, c.took
    ));
    failures(report, &mut out);
    verdicts(report, &mut out);
    for link in &report.links {
        for scenario in &report.scenarios {
            section(report, link, scenario, &mut out);
        }
    }
    legend(report, &mut out);
    out
}

fn failures(report: &Report, out: &mut String) {
    if report.failures.is_empty() {
        return;
    }
    out.push_str("\n## What failed\n\n");
    for failure in &report.failures {
        wrote(writeln!(out, "- {}", one_line(failure)));
    }
}

fn verdicts(report: &Report, out: &mut String) {
    for (outcome, title) in [
        (Outcome::Loses, "Where inlay loses"),
        (Outcome::Even, "Where the difference is within the spread"),
        (Outcome::Wins, "Where inlay wins"),
    ] {
        let of_this: Vec<_> =
            report.verdicts.iter().filter(|verdict| verdict.outcome == outcome).collect();
        if of_this.is_empty() {
            continue;
        }
        wrote(write!(out, "\n## {title}\n\n"));
        for verdict in of_this {
            wrote(writeln!(out, "- {}", verdict.text));
        }
    }
}

fn section(report: &Report, link: &LinkReport, scenario: &ScenarioReport, out: &mut String) {
    wrote(write!(out, "\n## {} over {}\n\n", scenario.name, link.name));
    if !scenario.about.is_empty() {
        wrote(write!(out, "{}. ", one_line(scenario.about.trim_end_matches('.'))));
    }
    wrote(write!(out, "Ready when {}.", scenario.ready));
    out.push_str(&ideal(link, scenario));
    out.push_str("\n\n");
    let head = ["method", "host", "seconds", "least–most", "times the limit", "MB", "requests"]
        .map(str::to_owned)
        .to_vec();
    let mut rows = vec![head];
    for state in HostState::ALL {
        for method in &report.methods {
            if let Some(cell) = report.cell(&link.name, &scenario.name, &method.name, state) {
                rows.push(row(cell));
            }
        }
    }
    out.push_str(&table(&rows));
}

fn ideal(link: &LinkReport, scenario: &ScenarioReport) -> String {
    let (Some(ideal), Some(figures), Some(needed)) =
        (scenario.ideal.get(&link.name), link.figures, scenario.needed)
    else {
        return " The ideal is not known.".to_owned();
    };
    let LinkSpeed { latency, bandwidth } = figures;
    let rate = bandwidth.map_or(String::new(), |rate| format!(" at {:.1} MB/s", rate / 1e6));
    format!(
        " The ideal is {ideal:.3} s: two latencies of {:.1} ms, {} MB{rate}, and the hot native start.",
        latency * 1e3,
        megabytes(needed.stored_bytes),
    )
}

fn row(cell: &Cell) -> Vec<String> {
    let mut row = vec![cell.method.clone(), cell.state.to_string()];
    match (&cell.failure, cell.seconds) {
        (None, Some(seconds)) => {
            let bytes = Spread::of(cell.samples.iter().map(|sample| as_f64(sample.bytes)));
            let requests = Spread::of(cell.samples.iter().map(|sample| as_f64(sample.requests)));
            row.extend([
                format!("{:.3}", seconds.median),
                format!("{:.3}–{:.3}", seconds.least, seconds.most),
                cell.ratio.map_or(NOTHING.to_owned(), |ratio| format!("{ratio:.2}")),
                bytes.map_or(NOTHING.to_owned(), |bytes| format!("{:.1}", bytes.median / 1e6)),
                requests.map_or(NOTHING.to_owned(), |number| format!("{:.0}", number.median)),
            ]);
        }
        (failure, _) => {
            let why = failure.as_deref().unwrap_or("not measured");
            row.push(format!("failed: {}", one_line(why)));
        }
    }
    row
}

fn legend(report: &Report, out: &mut String) {
    out.push_str("\n## What the words mean\n\n");
    for method in &report.methods {
        wrote(writeln!(out, "- {}: {}", method.name, one_line(&method.about)));
    }
    out.push_str(
        "\nSeconds are from before the first request for the image to when the command is ready, in a \
         container on an overlay. Cold: the host has nothing of the image. Warm: it has all that the method \
         keeps on disk, and the kernel's caches are empty. Hot: at once after another start. The limit of a \
         cold start is the ideal: two latencies, the time that the link needs for what a recorded start read \
         (compressed groups, each once; the index is not counted), and the median of hot native starts. The \
         limit of others is the native start in the same state. MB and requests are what came through the \
         link until ready.\n",
    );
}

/// Writing to a `String` cannot fail.
fn wrote(outcome: std::fmt::Result) {
    debug_assert!(outcome.is_ok());
}

/// Folds a message into one line and escapes `|`, which would start another cell.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Renders a table with aligned columns: the first two to the left, the others to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    // A failure spans the rest of its row and does not count for the width of a column.
    let whole = |row: &&Vec<String>| row.len() == columns;
    let width = |column: usize| {
        let cells = rows.iter().filter(whole).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = widths.iter().enumerate().map(|(column, width)| {
            let cell = row.get(column).map_or("", String::as_str);
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        wrote(writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | ")));
        if number == 0 {
            let rule = widths.iter().enumerate().map(|(column, width)| match column {
                0 | 1 => "-".repeat(*width),
                _ => format!("{}:", "-".repeat(width.saturating_sub(1))),
            });
            wrote(writeln!(out, "| {} |", rule.collect::<Vec<_>>().join(" | ")));
        }
    }
    out
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", as_f64(bytes) / 1e6)
}

/// Exact below 8 PiB.
#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}
