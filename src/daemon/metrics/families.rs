//! Builds Prometheus metric families: series with labels.

use std::collections::BTreeMap;

use inlay_prefetch::{BOUNDS_MICROS, HistogramCounts};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Series, MetricFamily, MetricType,
};

use super::defs::{Metric, MetricKind};

/// Families gathered for one scrape.
#[derive(Debug, Default)]
pub(super) struct Families {
    series: BTreeMap<Metric, Vec<Series>>,
}

impl Families {
    /// Adds an integer sample of `metric` with these label values.
    pub(super) fn number(&mut self, metric: Metric, labels: &[&str], number: u64) {
        self.value(metric, labels, float(number));
    }

    /// Adds a floating-point sample of `metric` with these label values.
    pub(super) fn value(&mut self, metric: Metric, labels: &[&str], value: f64) {
        let mut series = labelled(metric, labels);
        if metric.definition().kind == MetricKind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            series.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            series.set_gauge(gauge);
        }
        self.series.entry(metric).or_default().push(series);
    }

    /// Adds a histogram of durations; exported in seconds.
    pub(super) fn histogram(&mut self, metric: Metric, labels: &[&str], stats: &HistogramCounts) {
        let mut below = 0;
        let buckets = BOUNDS_MICROS.iter().zip(stats.buckets).map(|(bound, number)| {
            below += number;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(float(*bound) / 1e6);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(stats.count());
        histogram.set_sample_sum(float(stats.sum_micros) / 1e6);
        let mut series = labelled(metric, labels);
        series.set_histogram(histogram);
        self.series.entry(metric).or_default().push(series);
    }

    pub(super) fn finish(self) -> Vec<MetricFamily> {
        let family = |(metric, series): (Metric, Vec<Series>)| {
            let definition = metric.definition();
            let mut family = MetricFamily::default();
            family.set_name(definition.name.to_owned());
            family.set_help(definition.help.to_owned());
            family.set_field_type(match definition.kind {
                MetricKind::Counter => MetricType::COUNTER,
                MetricKind::Gauge => MetricType::GAUGE,
                MetricKind::Histogram => MetricType::HISTOGRAM,
            });
            family.set_metric(series);
            family
        };
        self.series.into_iter().map(family).collect()
    }
}

fn labelled(metric: Metric, values: &[&str]) -> Series {
    let names = metric.definition().labels;
    debug_assert_eq!(names.len(), values.len(), "{metric:?}");
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Series::from_label(names.iter().zip(values).map(pair).collect())
}

/// Prometheus samples are f64.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}
