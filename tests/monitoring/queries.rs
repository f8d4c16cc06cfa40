//! Which metrics a query of Prometheus names, and whether it uses them as what they are.

use std::collections::BTreeSet;

use inlayfs::daemon::{METRICS, MetricKind};

/// What only ever grows is looked at through one of these.
const OF_COUNTERS: [&str; 3] = ["rate(", "increase(", "irate("];

/// The names of this project's metrics in a query, as they are written there.
pub(crate) fn named(query: &str) -> BTreeSet<String> {
    places(query).map(|(_, name)| name.to_owned()).collect()
}

fn places(query: &str) -> impl Iterator<Item = (usize, &str)> {
    query.match_indices("inlay_").map(|(at, _)| {
        let rest = &query[at..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        (at, &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())])
    })
}

/// Says what is wrong with how a query uses metrics.
pub(crate) fn check(query: &str) -> Result<(), String> {
    if !query.contains("up{") && named(query).is_empty() {
        return Err("no metric is named".into());
    }
    for (at, name) in places(query) {
        let grows = match kind(name) {
            None => return Err(format!("there is no {name}")),
            Some(MetricKind::Histogram) => return Err(format!("{name} is a histogram")),
            Some(MetricKind::Counter) => true,
            Some(MetricKind::Gauge) => false,
        };
        let before = &query[..at];
        let in_rate = OF_COUNTERS.iter().any(|function| before.ends_with(function));
        if grows != in_rate {
            return Err(format!("{name} is used as what it is not"));
        }
    }
    for (at, function) in query.match_indices("histogram_quantile(") {
        let inside = closed(&query[at + function.len()..]);
        if !named(inside).iter().all(|name| name.ends_with("_bucket")) {
            return Err("a quantile of what are no buckets".into());
        }
        let grouped = inside.split_once("by (").and_then(|(_, rest)| rest.split_once(')'));
        if !grouped.is_some_and(|(labels, _)| labels.split(", ").any(|label| label == "le")) {
            return Err("a quantile without the buckets' bounds".into());
        }
    }
    Ok(())
}

/// Up to the bracket that closes.
fn closed(text: &str) -> &str {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

/// What a series is; the parts of a histogram are counters.
fn kind(name: &str) -> Option<MetricKind> {
    let of = |name: &str| METRICS.iter().find(|metric| metric.name == name).map(|of| of.kind);
    let part = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
    match (of(name), part.and_then(of)) {
        (Some(kind), _) => Some(kind),
        (None, Some(MetricKind::Histogram)) => Some(MetricKind::Counter),
        (None, _) => None,
    }
}
