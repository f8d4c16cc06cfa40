//! Derives verdicts from a report, in sentences, those against inlay first.

use super::{Cell, Outcome, Report, Verdict, Whose};
use crate::method::HostState;

/// A ratio to the limit above this yields a verdict.
const IDEAL_FACTOR: f64 = 1.15;

/// Compares inlay with each other method and with the limit, by link, scenario and state.
pub(super) fn verdicts(report: &Report) -> Vec<Verdict> {
    let mut all = Vec::new();
    for link in &report.links {
        for scenario in &report.scenarios {
            for state in HostState::ALL {
                all.extend(of_state(report, &link.name, &scenario.name, state));
            }
        }
    }
    all.sort_by_key(|verdict| verdict.outcome);
    all
}

fn of_state(report: &Report, link: &str, scenario: &str, state: HostState) -> Vec<Verdict> {
    let mut all = Vec::new();
    let measured =
        |name: &str| report.cell(link, scenario, name, state).filter(|cell| cell.seconds.is_some());
    let here = format!("{scenario}, {state}, over {link}");
    // inlay with its defaults at the first start, and from the second start on.
    for ours in ["profile", "no-profile"] {
        let Some(cell) = measured(ours) else { continue };
        all.extend(against_the_limit(cell, &here));
        for method in report.methods.iter().filter(|method| method.whose == Whose::Other) {
            if let Some(theirs) = measured(&method.name) {
                all.extend(against(cell, theirs, &here));
            }
        }
    }
    all
}

fn against(ours: &Cell, theirs: &Cell, here: &str) -> Option<Verdict> {
    let (our, their) = (ours.seconds?, theirs.seconds?);
    let (name, other) = (&ours.method, &theirs.method);
    let seconds = format!("{:.3} s against {:.3} s", our.median, their.median);
    Some(if our.overlaps(&their) {
        let text = format!(
            "{here}: inlay ({name}) and {other} can't be told apart: {seconds}, and their spreads overlap"
        );
        Verdict { outcome: Outcome::Even, text }
    } else if our.median > their.median {
        let times = our.median / their.median;
        let text =
            format!("{here}: inlay ({name}) is {times:.2} times slower than {other}: {seconds}");
        Verdict { outcome: Outcome::Loses, text }
    } else {
        let times = their.median / our.median;
        let text =
            format!("{here}: inlay ({name}) is {times:.2} times faster than {other}: {seconds}");
        Verdict { outcome: Outcome::Wins, text }
    })
}

fn against_the_limit(cell: &Cell, here: &str) -> Option<Verdict> {
    let (ratio, name) = (cell.ratio?, &cell.method);
    if ratio <= IDEAL_FACTOR {
        return None;
    }
    let limit = if cell.state == HostState::Cold { "the ideal" } else { "a native directory" };
    let text = format!("{here}: inlay ({name}) takes {ratio:.2} times as long as {limit}");
    Some(Verdict { outcome: Outcome::Loses, text })
}
