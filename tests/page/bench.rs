//! The page of a benchmark's report: what is drawn is what was measured, and what failed has no number.

use inlay_bench::{page, report::Report};
use serde_json::{Value, json};

use crate::browser::Browser;

/// Two scenarios over two links; one method fails in one of them.
fn report() -> Value {
    let methods = [
        ("native", "the directory on the local disk: the limit", "limit", 0.0),
        ("profile", "inlay, with the profile of an earlier start", "inlay", 1.3),
        ("no-profile", "inlay, the image's first start anywhere", "inlay", 2.2),
        ("skopeo-umoci", "download and unpack the whole image", "other", 9.5),
        ("squashfs", "download one squashfs file, mount it", "other", 1.1),
    ];
    let mut random = fastrand::Rng::with_seed(5);
    let mut cells = Vec::new();
    for (link, far) in [("region", 1.0), ("wan", 2.7)] {
        for (scenario, size) in [("python", 1.0), ("node", 0.6)] {
            for (method, _, whose, cold) in methods {
                for state in ["cold", "warm", "hot"] {
                    if whose == "limit" && state == "cold" {
                        continue;
                    }
                    let native = if state == "hot" { 0.41 } else { 0.78 };
                    let base = if state == "cold" {
                        cold * size * far + 0.41
                    } else {
                        native * size * if whose == "limit" { 1.0 } else { 1.12 }
                    };
                    let failed = method == "skopeo-umoci" && scenario == "node";
                    let samples: Vec<Value> = (0..7).filter(|_| !failed).map(|_| json!({
                        "seconds": base * (1.0 + random.f64() * 0.12), "bytes": if state == "cold" { random.u64(50_000_000..60_000_000) } else { 0 }, "requests": if state == "cold" { random.u64(150..400) } else { 0 }
                    })).collect();
                    let failure = failed.then_some(
                        "the command ended with 1 and never was ready: <b>no module</b> \"x\"",
                    );
                    cells.push(json!({"link": link, "scenario": scenario, "method": method, "state": state, "samples": samples, "seconds": null, "ratio": null, "failure": failure}));
                }
            }
        }
    }
    let scenario = |name: &str, about: &str| json!({"name": name, "about": about, "command": [name, "-c", "import numpy; print(\"ready\")"], "ready": "its output has a line like /^ready/", "needed": {"groups": 310, "stored_bytes": 21_000_000, "raw_bytes": 60_000_000}, "ideal": {}});
    json!({
        "format": "inlay-bench", "version": 1,
        "conditions": {"began": 1_767_225_600, "took": 611.0, "inlay": "0.1.0", "kernel": "6.18.0", "cores": 2, "runtime": "runc", "runs": 7, "seed": 42, "store": "s3://bench</title><script>1</script>"},
        "links": [{"name": "region", "figures": {"latency": 0.012, "bandwidth": 125e6}}, {"name": "wan", "figures": {"latency": 0.05, "bandwidth": 25e6}}],
        "scenarios": [scenario("python", "numpy, pandas and scikit-learn are imported"), scenario("node", "a bundler builds a page")],
        "methods": methods.map(|(name, about, whose, _)| json!({"name": name, "about": about, "whose": whose})),
        "cells": cells, "verdicts": [], "failures": ["node over wan: skopeo-umoci failed"]
    })
}

fn concluded(report: Value) -> Report {
    let mut report: Report = serde_json::from_value(report).unwrap();
    report.conclude();
    report
}

#[test]
fn a_report_shows_each_sample_and_no_number_for_failures() {
    let report = concluded(report());
    let browser = Browser::start(1280, 1000);
    for scheme in ["light", "dark"] {
        browser.open(&page(&report), scheme);
        browser.screenshot(&format!("bench-{scheme}"));
    }
    browser.eval("document.querySelector('.start').scrollIntoView()");
    browser.screenshot("bench-plots");
    assert_eq!(
        browser.texts("section.start h2"),
        ["python over region", "node over region", "python over wan", "node over wan"]
    );
    let dots = browser.eval("return document.querySelectorAll('.chart .dot').length");
    assert_eq!(dots, report.cells.iter().map(|cell| cell.samples.len()).sum::<usize>());

    // The medians: as numbers, and where they are drawn.
    let read = "return [...document.querySelectorAll('.chart tbody tr:not(.failed)')].map((row) => { \
         const plot = row.querySelector('.plot svg').getBoundingClientRect(), at = (e) => (e.getBoundingClientRect().left + e.getBoundingClientRect().right) / 2 - plot.left; \
         const dots = [...row.querySelectorAll('.dot')].map(at).sort((a, b) => a - b); \
         return [row.cells[2].innerText, at(row.querySelector('.median')), dots[3]]; })";
    let rows = browser.eval(read);
    for row in rows.as_array().unwrap() {
        // Of seven samples the median is the fourth.
        assert!((row[1].as_f64().unwrap() - row[2].as_f64().unwrap()).abs() < 1.0, "{row}");
    }
    let mut shown: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
    let medians: Vec<String> = report
        .cells
        .iter()
        .filter_map(|cell| Some(format!("{:.3}", cell.seconds?.median)))
        .collect();
    let mut wanted: Vec<&str> = medians.iter().map(String::as_str).collect();
    shown.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(shown, wanted);

    // What failed: said, in red, without a number.
    let failed = browser.texts(".chart tr.failed");
    assert_eq!(failed.len(), 6);
    for row in &failed {
        assert!(
            row.starts_with("skopeo-umoci") && row.contains("failed: the command ended with 1"),
            "{row}"
        );
        assert!(row.contains("<b>no module</b>"), "{row}");
    }
    let colours = browser.eval("const bad = (e) => getComputedStyle(e).color; return [bad(document.querySelector('.chart td.failed')), bad(document.querySelector('.failures h2'))]");
    assert_eq!(colours[0], colours[1]);
    // Where inlay loses comes before where it wins.
    let titles = browser.texts(".verdict h2");
    assert!(titles[0].starts_with("Where inlay loses ("), "{titles:?}");
    assert_eq!(browser.eval("return document.querySelector('.verdict.loses').open"), true);
    assert!(browser.text(".verdict.loses li").contains("times slower than squashfs"));
    assert!(browser.texts("p.muted")[0].contains("s3://bench</title><script>1</script>"));
    assert_eq!(browser.eval("return document.scripts.length"), 0);
    browser.assert_quiet();
}

#[test]
fn a_report_without_anything_measured_says_so() {
    let browser = Browser::start(800, 700);
    let mut nothing = report();
    for cell in nothing["cells"].as_array_mut().unwrap() {
        cell["samples"] = json!([]);
        cell["failure"] = "the store does not answer: connection refused".into();
    }
    browser.open(&page(&concluded(nothing)), "light");
    browser.screenshot("bench-nothing");
    assert_eq!(browser.texts(".chart tr:not(.failed) td").len(), 0);
    assert!(browser.texts(".overview td").iter().all(|cell| cell == "failed"));
    assert!(browser.text("section.start").contains("The ideal is not known"));
    let mut empty = report();
    for list in ["links", "scenarios", "methods", "cells"] {
        empty[list] = json!([]);
    }
    browser.open(&page(&concluded(empty)), "dark");
    assert_eq!(browser.texts("h1"), ["Start-up latency"]);
    browser.open(&page(&concluded(report())), "light");
    browser.screenshot("bench-800");
    assert_eq!(browser.eval("return document.documentElement.scrollWidth > innerWidth"), false);
    browser.assert_quiet();
}
