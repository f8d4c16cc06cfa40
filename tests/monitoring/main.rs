//! The dashboard and the alert rules that are shipped: they name metrics that there are, use them as
//! what they are, and real Prometheus takes them. Needs promtool and prometheus; the last test also
//! root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../common/mod.rs"]
mod common;
mod queries;
mod scraped;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use inlay_testkit::process::find_program;
use queries::{check, named};
use serde_json::Value;

/// A file that is shipped.
fn shipped(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dist").join(path)
}

fn dashboard() -> Value {
    serde_json::from_slice(&fs::read(shipped("grafana/inlay.json")).unwrap()).unwrap()
}

/// All panels but the rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().unwrap().iter();
    all.filter(|panel| panel["type"] != "row").collect()
}

/// The queries of all panels.
fn expressions(dashboard: &Value) -> Vec<String> {
    let of = |panel: &Value| {
        let targets = panel["targets"].as_array().unwrap().clone();
        targets.into_iter().map(|target| target["expr"].as_str().unwrap().to_owned())
    };
    panels(dashboard).into_iter().flat_map(of).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A program of the package prometheus.
fn program(name: &str) -> Command {
    Command::new(find_program(name).unwrap())
}

fn promtool(words: &[&str]) {
    let ran = program("promtool").args(words).current_dir(shipped("prometheus")).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}{}", said(&ran.stdout), said(&ran.stderr));
}

#[test]
fn panels_are_told_apart_and_do_not_overlap() {
    let dashboard = dashboard();
    let all = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = all.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), all.len());
    let mut taken = BTreeSet::new();
    for panel in all {
        let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(at("w") > 0 && at("h") > 0 && at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} is above another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn each_panel_has_a_title_a_unit_and_the_chosen_source() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|of| of["type"] == "datasource" && of["query"] == "prometheus"));
    for panel in panels(&dashboard) {
        let title = text(&panel["title"]);
        assert!(!title.is_empty() && text(&panel["description"]).len() > 20, "{title}");
        assert!(!text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let refs: BTreeSet<&str> = targets.iter().map(|target| text(&target["refId"])).collect();
        assert!(!targets.is_empty() && refs.len() == targets.len(), "{title}");
        for source in targets.iter().chain([panel]).map(|of| &of["datasource"]["uid"]) {
            assert_eq!(source, "${datasource}", "{title}");
        }
    }
}

#[test]
fn queries_match_the_types_of_their_metrics() {
    let all = expressions(&dashboard());
    assert!(all.len() > 30);
    for query in &all {
        check(query).unwrap_or_else(|why| panic!("{why}: {query}"));
        assert!(query.contains("instance=~\"$instance\""), "not of the chosen hosts: {query}");
    }
    let rules = fs::read_to_string(shipped("prometheus/inlay.rules.yml")).unwrap();
    for rule in rules.split("- alert: ").skip(1) {
        let (name, rest) = rule.split_once('\n').unwrap();
        let query = rest.split_once("expr: ").unwrap().1.split("\n        labels:").next().unwrap();
        let query = query.split("\n        for:").next().unwrap();
        check(query).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

#[test]
fn each_alert_has_its_heading_and_its_test() {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let rules = read(shipped("prometheus/inlay.rules.yml"));
    let tests = read(shipped("prometheus/inlay.test.yml"));
    let book = read(shipped("../docs/OPERATIONS.md"));
    let alerts: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in &alerts {
        let heading = format!("### {alert}");
        assert_eq!(book.lines().filter(|line| **line == heading).count(), 1, "{heading}");
        assert!(tests.contains(&format!("- name: {alert}\n")), "{alert} is not tested");
        let runbook = format!("runbook: docs/OPERATIONS.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&runbook), "{runbook}");
    }
    let headings = book.lines().filter(|line| line.starts_with("### Inlay")).count();
    assert_eq!(headings, alerts.len());
}

#[test]
fn prometheus_takes_the_rules() {
    promtool(&["check", "rules", "inlay.rules.yml"]);
}

#[test]
fn alerts_are_raised_when_they_should_be_and_not_otherwise() {
    promtool(&["test", "rules", "inlay.test.yml"]);
}

#[test]
fn names_in_queries_are_found() {
    let found = |query: &str| named(query).into_iter().collect::<Vec<_>>();
    assert_eq!(found("sum(rate(inlay_a_total[5m])) / inlay_b"), ["inlay_a_total", "inlay_b"]);
    assert_eq!(found("up{job=\"inlay\"}"), Vec::<String>::new());
}

#[test]
fn wrong_uses_are_found() {
    for wrong in [
        "inlay_nothing",
        "rate(inlay_mounts[5m])",
        "inlay_cache_hits_total",
        "histogram_quantile(0.5, rate(inlay_mount_seconds_count[5m]))",
        "histogram_quantile(0.5, sum(rate(inlay_mount_seconds_bucket[5m])))",
        "inlay_mount_seconds",
        "sum(inlay_mount_seconds_bucket)",
    ] {
        check(wrong).unwrap_err();
    }
}
