//! Renders a benchmark report as one self-contained HTML page: the content of the Markdown report,
//! with plots.
//!
//! The page is static: its content security policy forbids scripts and network access. Plots are
//! inline SVG with coordinates in percent, so that they scale with the page.

mod plot;
mod text;

use std::fmt::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use inlay_base::time;
use plot::{Row, chart};
use sha2::{Digest, Sha256};
use text::Escaped;

use super::link::LinkSpeed;
use super::method::HostState;
use super::report::{Cell, LinkReport, Outcome, Report, ScenarioReport, Whose};

const STYLE: &str = include_str!("page/page.css");
const NOTHING: &str = "–";

/// Renders the whole page.
pub fn page(report: &Report) -> String {
    Page(report).to_string()
}

struct Page<'a>(&'a Report);

impl fmt::Display for Page<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        let style_hash = STANDARD.encode(Sha256::digest(STYLE));
        writeln!(
            out,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{style_hash}'; \
             img-src data:; base-uri 'none'; form-action 'none'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
             <title>Start-up latency · inlay bench</title>\n<style>{STYLE}</style>\n</head>\n<body>"
        )?;
        conditions(report, out)?;
        failures(report, out)?;
        overview(report, out)?;
        verdicts(report, out)?;
        key(out)?;
        for link in &report.links {
            for scenario in &report.scenarios {
                section(report, link, scenario, out)?;
            }
        }
        words(report, out)?;
        out.write_str("</body>\n</html>\n")
    }
}

fn conditions(report: &Report, out: &mut dyn Write) -> fmt::Result {
    let c = &report.conditions;
    writeln!(
        out,
        "<h1>Start-up latency</h1>\n<p class=\"muted\">inlay {}, Linux {}, {} cores, {}, store {}; {} of each start, in random \
         order, seed {}; begun {} UTC, {:.0} s in all.</p>",
        Escaped(&c.inlay),
        Escaped(&c.kernel),
        c.cores,
        Escaped(&c.runtime),
        Escaped(&c.store),
        c.runs,
        c.seed,
        time::utc(c.began),
        c.took
    )?;
    Ok(())
}

fn failures(report: &Report, out: &mut dyn Write) -> fmt::Result {
    if report.failures.is_empty() {
        return Ok(());
    }
    out.write_str("<div class=\"failures\" role=\"alert\"><h2>What failed</h2>\n<ul>\n")?;
    for failure in &report.failures {
        writeln!(out, "<li>{}</li>", Escaped(failure))?;
    }
    out.write_str("</ul></div>\n")?;
    Ok(())
}

fn verdicts(report: &Report, out: &mut dyn Write) -> fmt::Result {
    for (outcome, class, title) in [
        (Outcome::Loses, "loses", "Where inlay loses"),
        (Outcome::Even, "even", "Where the difference is within the spread"),
        (Outcome::Wins, "wins", "Where inlay wins"),
    ] {
        let of_this: Vec<_> =
            report.verdicts.iter().filter(|verdict| verdict.outcome == outcome).collect();
        if of_this.is_empty() {
            continue;
        }
        let number = of_this.len();
        // Verdicts against inlay are always open.
        let open = if outcome == Outcome::Loses { " open" } else { "" };
        writeln!(
            out,
            "<details class=\"verdict {class}\"{open}><summary><h2>{title} ({number})</h2></summary>\n<ul>"
        )?;
        for verdict in of_this {
            writeln!(out, "<li>{}</li>", Escaped(&verdict.text))?;
        }
        writeln!(out, "</ul></details>")?;
    }
    Ok(())
}

/// Writes the legend of the plots.
fn key(out: &mut dyn Write) -> fmt::Result {
    out.write_str(
        "<p class=\"key\"><span><svg aria-hidden=\"true\"><circle class=\"dot inlay\" cx=\"13\" cy=\"7\" r=\"4\"/></svg>a start \
         with inlay</span><span><svg aria-hidden=\"true\"><rect class=\"dot other\" x=\"9.5\" y=\"3.5\" width=\"7\" \
         height=\"7\"/></svg>with another method</span><span><svg aria-hidden=\"true\"><rect class=\"dot limit\" x=\"9.5\" \
         y=\"3.5\" width=\"7\" height=\"7\"/></svg>from a native directory</span><span><svg aria-hidden=\"true\"><line \
         class=\"median limit\" x1=\"13\" x2=\"13\" y1=\"0\" y2=\"14\"/></svg>the median</span><span><svg \
         aria-hidden=\"true\"><line class=\"reference\" x1=\"13\" x2=\"13\" y1=\"0\" y2=\"14\"/></svg>the limit: ideal or \
         native</span></p>\n",
    )?;
    Ok(())
}

/// Writes the table of cold starts with all methods side by side, the most common question.
fn overview(report: &Report, out: &mut dyn Write) -> fmt::Result {
    let state = HostState::Cold;
    let measured: Vec<_> = report
        .methods
        .iter()
        .filter(|method| {
            report.cells.iter().any(|cell| cell.state == state && cell.method == method.name)
        })
        .collect();
    if measured.is_empty() {
        return Ok(());
    }
    out.write_str(
        "<div class=\"wide\"><table class=\"overview\"><caption>Cold starts: median seconds, and how many times the \
         ideal that is. The fastest of a row is marked.</caption>\n<thead><tr><th scope=\"col\">start</th>",
    )?;
    for method in &measured {
        write!(
            out,
            "<th scope=\"col\" class=\"{}\">{}</th>",
            class(method.whose),
            Escaped(&method.name)
        )?;
    }
    out.write_str("</tr></thead>\n<tbody>\n")?;
    for link in &report.links {
        for scenario in &report.scenarios {
            let cells: Vec<_> = measured
                .iter()
                .map(|method| report.cell(&link.name, &scenario.name, &method.name, state))
                .collect();
            overview_row(&format!("{} over {}", scenario.name, link.name), &cells, out)?;
        }
    }
    out.write_str("</tbody></table></div>\n")?;
    Ok(())
}

fn overview_row(name: &str, cells: &[Option<&Cell>], out: &mut dyn Write) -> fmt::Result {
    let median = |cell: &Cell| number(cell).map(|seconds| seconds.median);
    let best = cells.iter().flatten().filter_map(|cell| median(cell)).min_by(f64::total_cmp);
    write!(out, "<tr><th scope=\"row\">{}</th>", Escaped(name))?;
    for cell in cells {
        out.write_str(&match cell.map(|cell| (cell, median(cell))) {
            None => format!("<td>{NOTHING}</td>"),
            Some((_, None)) => "<td class=\"failed\">failed</td>".to_owned(),
            Some((cell, Some(seconds))) => {
                let best = if Some(seconds) == best { " class=\"best\"" } else { "" };
                let times = cell
                    .ratio
                    .map_or(String::new(), |ratio| format!(" <small>×{ratio:.2}</small>"));
                format!("<td{best}>{seconds:.3}{times}</td>")
            }
        })?;
    }
    out.write_str("</tr>\n")?;
    Ok(())
}

fn section(
    report: &Report,
    link: &LinkReport,
    scenario: &ScenarioReport,
    out: &mut dyn Write,
) -> fmt::Result {
    writeln!(
        out,
        "<section class=\"start\"><h2>{} over {}</h2>",
        Escaped(&scenario.name),
        Escaped(&link.name)
    )?;
    if !scenario.about.is_empty() {
        writeln!(out, "<p>{}</p>", Escaped(&scenario.about))?;
    }
    writeln!(
        out,
        "<p class=\"muted\"><code>{}</code>, ready when {}. {}</p>",
        Escaped(&scenario.command.join(" ")),
        Escaped(&scenario.ready),
        ideal(link, scenario)
    )?;
    for state in HostState::ALL {
        let rows: Vec<Row<'_>> = report
            .methods
            .iter()
            .filter_map(|method| {
                let cell = report.cell(&link.name, &scenario.name, &method.name, state)?;
                Some(Row { cell, class: class(method.whose), about: &method.about })
            })
            .collect();
        if !rows.is_empty() {
            chart(state, &rows, reference(report, link, scenario, state), out)?;
        }
    }
    out.write_str("</section>\n")?;
    Ok(())
}

/// Returns the reference of a state in seconds, and its name.
fn reference(
    report: &Report,
    link: &LinkReport,
    scenario: &ScenarioReport,
    state: HostState,
) -> Option<(f64, &'static str)> {
    if state == HostState::Cold {
        return Some((*scenario.ideal.get(&link.name)?, "ideal"));
    }
    let limit = report.methods.iter().find(|method| method.whose == Whose::Limit)?;
    let cell = report.cell(&link.name, &scenario.name, &limit.name, state)?;
    Some((number(cell)?.median, "native"))
}

fn ideal(link: &LinkReport, scenario: &ScenarioReport) -> String {
    let (Some(ideal), Some(figures), Some(needed)) =
        (scenario.ideal.get(&link.name), link.figures, scenario.needed)
    else {
        return "The ideal is not known.".to_owned();
    };
    let LinkSpeed { latency, bandwidth } = figures;
    let rate = bandwidth.map_or(String::new(), |rate| format!(" at {:.1} MB/s", rate / 1e6));
    format!(
        "The ideal is {ideal:.3} s: two latencies of {:.1} ms, {:.1} MB in {} groups{rate}, and the hot native start.",
        latency * 1e3,
        as_f64(needed.stored_bytes) / 1e6,
        needed.groups
    )
}

fn words(report: &Report, out: &mut dyn Write) -> fmt::Result {
    out.write_str("<section><h2>What the words mean</h2>\n<dl>\n")?;
    for method in &report.methods {
        let (name, about) = (Escaped(&method.name), Escaped(&method.about));
        writeln!(out, "<dt>{name}</dt><dd>{about}</dd>")?;
    }
    out.write_str(
        "</dl>\n<p>Seconds are from before the first request for the image to when the command is ready, in a \
         container on an overlay. Cold: the host has nothing of the image. Warm: it has all that the method keeps on \
         disk, and the kernel's caches are empty. Hot: at once after another start. The ideal of a cold start is two \
         latencies, the time that the link needs for what a recorded start read (compressed groups, each once; the \
         index is not counted), and the median of hot native starts. Others are compared with the native start in the \
         same state. MB (10<sup>6</sup> bytes) and requests are what came through the link until ready, medians.</p>\n</section>\n",
    )?;
    Ok(())
}

/// Returns the statistics of a cell, unless it failed.
fn number(cell: &Cell) -> Option<super::stats::Spread> {
    cell.seconds.filter(|_| cell.failure.is_none())
}

/// CSS class of a method's marks.
fn class(whose: Whose) -> &'static str {
    match whose {
        Whose::Limit => "limit",
        Whose::Inlay => "inlay",
        Whose::Other => "other",
    }
}

/// Exact below 8 PiB.
#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}
