//! A trace of more than 50,000 events: what is in the document and what is drawn for a frame stays bounded.

use crate::browser::Browser;
use crate::{show, start};

/// Far above what there is, far below the number of events.
const NODES: u64 = 700;
const TABLE_NODES: u64 = 3_000;
/// Twice four colours in each column of the window for the critical path, and some for all else.
const DRAWN: u64 = 12_000;

#[test]
fn fifty_thousand_events_are_drawn_with_as_little_as_a_hundred() {
    let trace = start::Start { files: 40_000, latency: 12_000, rate: 200, seed: 3 }.trace();
    let rows = |table: &str| trace[table]["rows"].as_array().unwrap().len();
    let (touches, fetches) = (rows("touches"), rows("fetches"));
    assert!(touches + fetches > 50_000, "{touches} + {fetches}");
    let browser = Browser::start(1280, 800);
    show(&browser, &trace, "light");
    browser.screenshot("many");
    let nodes = || browser.eval("return document.querySelectorAll('*').length").as_u64().unwrap();
    let drawn = || browser.eval("return inlayTrace.counts.most").as_u64().unwrap();
    let frames = || browser.eval("return inlayTrace.counts.frames").as_u64().unwrap();
    assert!(nodes() < NODES, "{} nodes", nodes());

    let before = frames();
    for _ in 0..12 {
        browser.wheel((800, 700), -300);
    }
    browser.drag((900, 600), -150);
    browser.wheel((100, 700), 5_000);
    assert!(frames() > before + 8, "the page does not follow");
    let shown = browser.eval("return inlayTrace.view.files.length").as_u64().unwrap();
    assert!(shown > 0 && shown < 4_000, "{shown} rows of a small part of the time");
    browser.screenshot("many-near");
    browser.keys("0/fromnumeric\u{E007}\u{E007}");
    assert!(browser.text("#hits").starts_with("2 of "), "{}", browser.text("#hits"));
    browser.click("#tab-waits");
    assert_eq!(browser.texts("#table-body tr").len(), 100);
    assert!(nodes() < TABLE_NODES, "{} nodes", nodes());
    browser.click("#page-next");
    assert!(browser.text("#page-at").starts_with("101 to 200 of "));
    assert!(drawn() < DRAWN, "{} things drawn for a frame", drawn());
    browser.assert_quiet();
}
