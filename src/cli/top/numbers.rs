//! Parses metrics in the Prometheus text format, and computes growth and quantiles.

use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

/// All series of one scrape, by name and labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sampled {
    series: BTreeMap<String, Vec<(Labels, f64)>>,
}

impl Sampled {
    /// Parses the text format; skips malformed lines.
    pub(super) fn parse(text: &str) -> Self {
        let mut numbers = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, labels, value)) = series(line) {
                numbers.series.entry(name.to_owned()).or_default().push((labels, value));
            }
        }
        numbers
    }

    /// Returns the value of a metric with one series; the first if there are several.
    pub(super) fn one(&self, name: &str) -> Option<f64> {
        self.series.get(name)?.first().map(|(_, value)| *value)
    }

    /// Sums the series of a metric that pass `filter`, for each value of `label`.
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

/// Parses `name{label="value",…} number`.
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

/// Parses up to the closing quote. Returns the unescaped text and the rest after the quote.
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

/// Returns the growth of a counter. A smaller value is a counter reset.
pub(super) fn growth(before: f64, now: f64) -> f64 {
    if now < before { now } else { now - before }
}

/// Computes the quantile `q` (0 to 1) of cumulative buckets, keyed by upper bound, with linear
/// interpolation within a bucket, as `histogram_quantile` of Prometheus. Returns `None` for an empty
/// histogram.
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
    use std::time::Duration;

    use inlay_prefetch::{BOUNDS_MICROS, Histogram, STEP_MAX};

    use super::*;

    #[test]
    fn series_are_read_with_their_labels() {
        let text = "# HELP a x\na 1\nb{s=\"x,y=\\\"}\\\\\",c=\"d\"} 2.5\nb{s=\"t\",c=\"d\"} 1\nbad{ 1\nbad\n";
        let numbers = Sampled::parse(text);
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

    /// Returns the quantile of a histogram of `samples`, as Prometheus computes it.
    fn by_buckets(q: f64, samples: &[Duration]) -> f64 {
        let histogram = Histogram::default();
        for sample in samples {
            histogram.take(*sample);
        }
        let counts = histogram.stats().buckets;
        let mut below = 0.0;
        let bounds = BOUNDS_MICROS.map(|bound| (Duration::from_micros(bound)).as_secs_f64());
        let bounds = bounds.map(|bound| bound.to_string()).into_iter().chain(["+Inf".to_owned()]);
        let cumulative = bounds.zip(counts).map(|(bound, count)| {
            below += f64::from(u32::try_from(count).unwrap());
            (bound, below)
        });
        quantile(q, &cumulative.collect()).unwrap()
    }

    #[test]
    fn quantiles_of_buckets_are_near_those_of_the_samples() {
        // The error is at most one bucket step, from cache hits (20 us) to slow starts (minutes).
        for exponent in 0..70 {
            let seconds = 20e-6 * 1.25_f64.powi(exponent);
            let samples: Vec<_> = (0..100)
                .map(|number| Duration::from_secs_f64(seconds * (1.0 + f64::from(number) / 100.0)))
                .collect();
            for (q, number) in [(0.5, 49), (0.9, 89), (0.99, 98)] {
                let exact = samples[number].as_secs_f64();
                let error = by_buckets(q, &samples) / exact;
                assert!((1.0 / STEP_MAX..=STEP_MAX).contains(&error), "{q} of {exact} s: {error}");
            }
        }
        // Starts of 1.2 s must not trigger an alert on starts over 5 s.
        assert!(by_buckets(0.99, &[Duration::from_millis(1200); 50]) < 5.0);
        assert!(by_buckets(0.99, &[Duration::from_secs(7); 50]) > 5.0);
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        assert!((growth(5.0, 7.0) - 2.0).abs() < f64::EPSILON);
        assert!((growth(5.0, 3.0) - 3.0).abs() < f64::EPSILON);
    }
}
