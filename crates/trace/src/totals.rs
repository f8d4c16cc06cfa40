//! Computes sums over a trace.

use super::model::{FetchOutcome, SegmentKind, Tier, TierTotals, Totals, Trace};

/// Sums up the rows and the path of `trace`.
pub fn totals(trace: &Trace) -> Totals {
    let mut totals = Totals::default();
    for kind in SegmentKind::ALL {
        totals.path.insert(kind.name().to_owned(), 0);
    }
    for segment in &trace.path {
        let sum = totals.path.entry(segment.kind.name().to_owned()).or_default();
        *sum = sum.saturating_add(segment.to.saturating_sub(segment.from));
    }
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    for tier in Tier::ALL {
        totals.touches.insert(tier.name().to_owned(), TierTotals::default());
    }
    for row in &trace.touches.rows {
        let sum = totals.touches.entry(row.tier.name().to_owned()).or_default();
        if row.first {
            sum.first += 1;
        } else {
            sum.later += 1;
        }
        sum.wait = sum.wait.saturating_add(number(row.wait));
        sum.bytes = sum.bytes.saturating_add(number(row.bytes));
    }
    for row in &trace.fetches.rows {
        let sum = totals.fetches.entry(row.class.name().to_owned()).or_default();
        sum.requests += 1;
        sum.bytes = sum.bytes.saturating_add(number(row.bytes));
        sum.failed += u64::from(row.outcome == FetchOutcome::Failed);
    }
    totals
}
