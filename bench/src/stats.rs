//! Computes medians and spreads of samples.

use serde::{Deserialize, Serialize};

/// Median and range of samples of one quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Minimum.
    pub least: f64,
    /// Maximum.
    pub most: f64,
}

impl Spread {
    /// Computes the spread; `None` without samples. For an even number of samples the median is the
    /// mean of the middle two.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), least, most })
    }

    /// Whether the ranges overlap.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([]), None);
        let of = |values: &[f64]| Spread::of(values.iter().copied()).unwrap();
        assert_eq!(of(&[2.0]), Spread { median: 2.0, least: 2.0, most: 2.0 });
        assert_eq!(of(&[3.0, 1.0, 9.0]), Spread { median: 3.0, least: 1.0, most: 9.0 });
        assert_eq!(of(&[3.0, 1.0, 9.0, 4.0]), Spread { median: 3.5, least: 1.0, most: 9.0 });
        assert!(of(&[1.0, 3.0]).overlaps(&of(&[3.0, 4.0])));
        assert!(!of(&[1.0, 3.0]).overlaps(&of(&[3.1, 4.0])));
    }
}
