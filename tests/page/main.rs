//! The page of a trace in a real headless Chromium. It needs chromium and chromedriver, which
//! `scripts/setup test` installs. Pictures are left in `target/page`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod bad;
mod bench;
mod browser;
mod many;
mod start;
mod use_of;

use std::collections::BTreeMap;

use browser::Browser;
use inlay_trace::page;
use serde_json::Value;

/// Opens the page of a trace and waits until it is drawn.
fn show(browser: &Browser, trace: &Value, scheme: &str) {
    browser.open(&page(&trace.to_string()), scheme);
    // The driver may answer before the page's script has run.
    browser.until("the page is drawn", "return window.inlayTrace?.counts.frames > 0");
}

/// A column of a trace's table.
fn column<'a>(trace: &'a Value, table: &str, name: &str) -> Vec<&'a Value> {
    let table = &trace[table];
    let place =
        table["columns"].as_array().unwrap().iter().position(|column| column == name).unwrap();
    table["rows"].as_array().unwrap().iter().map(|row| &row[place]).collect()
}

/// `"1.42 s"` in seconds, `"850 µs"` too.
fn seconds(text: &str) -> f64 {
    let (number, unit) = text.split_once(' ').unwrap();
    let unit = match unit {
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => panic!("what is {text}?"),
    };
    number.parse::<f64>().unwrap() * unit
}

#[test]
fn a_start_is_shown_without_a_word_on_the_console_or_to_a_network() {
    let trace = start::python();
    for (width, height) in [(1280, 800), (1920, 1080), (800, 700)] {
        let browser = Browser::start(width, height);
        for scheme in ["light", "dark"] {
            show(&browser, &trace, scheme);
            browser.screenshot(&format!("start-{width}-{scheme}"));
            let overflow = browser.eval("return document.documentElement.scrollWidth > innerWidth");
            assert_eq!(overflow, false, "{width} wide, the page is wider");
        }
        browser.assert_quiet();
    }
}

#[test]
fn the_sums_of_the_critical_path_are_those_of_the_data() {
    let trace = start::python();
    let browser = Browser::start(1280, 800);
    show(&browser, &trace, "light");
    let mut sums = BTreeMap::new();
    for step in trace["path"].as_array().unwrap() {
        *sums.entry(step["kind"].as_str().unwrap().to_owned()).or_insert(0) +=
            step["to"].as_u64().unwrap() - step["from"].as_u64().unwrap();
    }
    assert_eq!(sums.values().sum::<u64>(), trace["ready"].as_u64().unwrap());
    let kinds = browser
        .eval("return [...document.querySelectorAll('#sums li')].map((e) => e.dataset.kind)");
    let times = browser.texts("#sums li b");
    let percents = browser.texts("#sums li .percent");
    let shown: Vec<&str> =
        kinds.as_array().unwrap().iter().map(|kind| kind.as_str().unwrap()).collect();
    assert_eq!(shown.len(), sums.len());
    let mut tenths = 0;
    for ((kind, time), percent) in shown.iter().zip(&times).zip(&percents) {
        #[allow(clippy::cast_precision_loss, reason = "microseconds of seconds")]
        let wanted = sums[*kind] as f64 / 1e6;
        assert!((seconds(time) - wanted).abs() <= wanted * 0.005, "{kind}: {time} for {wanted} s");
        tenths += percent.strip_suffix(" %").unwrap().replace('.', "").parse::<u32>().unwrap();
    }
    assert_eq!(tenths, 1000, "{percents:?}");
    browser.assert_quiet();
}

#[test]
#[ignore = "shows a trace of one's own: PAGE_TRACE=FILE"]
fn a_trace_from_a_file() {
    let trace = std::fs::read_to_string(std::env::var_os("PAGE_TRACE").unwrap()).unwrap();
    let browser = Browser::start(1400, 900);
    show(&browser, &serde_json::from_str(&trace).unwrap(), "light");
    browser.screenshot("own");
    browser.keys("]");
    browser.wheel((900, 700), -800);
    browser.screenshot("own-near");
    browser.assert_quiet();
}
