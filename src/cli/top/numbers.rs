//! Numbers in the text format of Prometheus, and quantiles of what happened between two of them.

use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

/// All series of one look, by name and labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Numbers {
    series: BTreeMap<String, Vec<(Labels, f64)>>,
}

impl Numbers {
    /// Reads them. Lines that are not as they should be are left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut numbers = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, labels, value)) = series(line) {
                numbers.series.entry(name.to_owned()).or_default().push((labels, value));
            }
        }
        numbers
    }

    /// A number that is alone; the first one if there are several.
    pub(super) fn one(&self, name: &str) -> Option<f64> {
        self.series.get(name)?.first().map(|(_, value)| *value)
    }

    /// The sum of a metric for each value of `label`, of those series that `filter` lets through.
    pub(super) fn by(
        &self,
        name: &str,
        label: &str,
        filter: impl Fn(&Labels) -> bool,
    ) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (labels, value) in self.series.get(name).into_iter().flatten() {
            if let (Some(of), true) = (labels.get(label), filter(labels)) {
                *sums.entry(of.clone()).or_insert(0.0) += value;
            }
        }
        sums
    }
}

/// `name{label="value",…} number`.
fn series(line: &str) -> Option<(&str, Labels, f64)> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else {
        return Some((head, BTreeMap::new(), value));
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}')?;
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"")?;
        let (text, after) = quoted(after)?;
        labels.insert(label.to_owned(), text);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some((name, labels, value))
}

/// Up to the closing quotation mark, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                other => out.push(other),
            },
            _ => out.push(c),
        }
    }
    None
}

/// What a counter has grown by; one that is smaller began anew.
pub(super) fn growth(before: f64, now: f64) -> f64 {
    if now < before { now } else { now - before }
}

/// The quantile `q` (0 to 1) of what fell into cumulative buckets, by their upper bounds as text: as
/// Prometheus' `histogram_quantile` has it, linear within a bucket. Nothing if nothing fell.
pub(super) fn quantile(q: f64, buckets: &BTreeMap<String, f64>) -> Option<f64> {
    let mut bounds: Vec<(f64, f64)> = buckets
        .iter()
        .filter_map(|(bound, count)| {
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, *count))
        })
        .collect();
    bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    let total = bounds.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let rank = q * total;
    let mut below = (0.0, 0.0);
    for (bound, count) in bounds {
        if count >= rank && count > below.1 {
            if bound.is_infinite() {
                return Some(below.0);
            }
            return Some(below.0 + (bound - below.0) * (rank - below.1) / (count - below.1));
        }
        below = (bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_with_their_labels() {
        let text = "# HELP a x\na 1\nb{s=\"x,y=\\\"}\\\\\",c=\"d\"} 2.5\nb{s=\"t\",c=\"d\"} 1\nbad{ 1\nbad\n";
        let numbers = Numbers::parse(text);
        assert_eq!(numbers.one("a"), Some(1.0));
        let by = numbers.by("b", "c", |_| true);
        assert_eq!(by.into_iter().collect::<Vec<_>>(), [("d".to_owned(), 3.5)]);
        let one = numbers.by("b", "s", |labels| labels["s"] != "t");
        assert_eq!(one.into_keys().collect::<Vec<_>>(), ["x,y=\"}\\"]);
        assert_eq!(numbers.one("bad"), None);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let of = |counts: [f64; 3]| {
            ["0.1", "1", "+Inf"].map(str::to_owned).into_iter().zip(counts).collect()
        };
        assert_eq!(quantile(0.5, &of([10.0, 10.0, 10.0])), Some(0.05));
        assert_eq!(quantile(0.75, &of([0.0, 100.0, 100.0])), Some(0.775));
        assert_eq!(quantile(0.99, &of([0.0, 0.0, 7.0])), Some(1.0));
        assert_eq!(quantile(0.99, &of([0.0; 3])), None);
        assert_eq!(quantile(0.5, &BTreeMap::new()), None);
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        assert!((growth(5.0, 7.0) - 2.0).abs() < f64::EPSILON);
        assert!((growth(5.0, 3.0) - 3.0).abs() < f64::EPSILON);
    }
}
