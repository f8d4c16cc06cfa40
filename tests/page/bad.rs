//! Traces of which nothing may be believed: text that would like to be code, figures that are none.

use inlay_trace::page;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::show;
use crate::use_of::small;

#[test]
fn text_of_others_is_shown_as_text() {
    let evil = "/a/</script><script>window.owned = 1</script><img src=http://192.0.2.1/x onerror='owned=1'>\"'&amp;\u{202e}gnp.exe";
    let seen = evil.replace('\u{202e}', "\\u{202e}");
    let mut trace = small();
    trace["title"] = evil.into();
    trace["ready_by"] = evil.into();
    trace["command"][0] = evil.into();
    trace["inlay"] = evil.into();
    trace["host"] = json!({"kernel": evil, "cores": evil});
    trace["snapshots"][0] = json!({"id": evil, "name": evil, "store": evil});
    trace["marks"][0] = json!({"at": 0, "name": evil, "detail": evil});
    trace["files"][0][0] = evil.into();
    trace["path"][0] = json!({"from": 0, "to": 10_000, "kind": "__proto__", "touch": -1, "fetch": -1, "what": evil});
    trace["path"][2]["kind"] = evil.into();
    let browser = Browser::start(1280, 800);
    show(&browser, &trace, "light");
    assert_eq!(browser.text("#title"), seen);
    assert_eq!(browser.text("#ready-by"), seen);
    assert_eq!(browser.eval("return document.title"), format!("{seen} · inlay trace"));
    assert!(browser.texts("#sums .what").contains(&seen));
    browser.click("#worst-list li:nth-child(2) button");
    browser.click("#tip .links button");
    assert_eq!(browser.text("#tip .name"), seen);
    browser.screenshot("hostile");
    browser.click("#tab-waits");
    assert!(browser.texts("#table-body .path").contains(&seen));
    browser.click("#tab-path");
    let made = browser
        .eval("return [typeof window.owned, document.scripts.length, document.images.length]");
    assert_eq!(made, json!(["undefined", 2, 0]));
    browser.assert_quiet();
}

#[test]
fn invalid_traces_are_reported_on_the_page() {
    let browser = Browser::start(1280, 800);
    let mut no_column = small();
    no_column["touches"]["columns"] = json!(["at"]);
    for (text, message) in [
        (String::new(), "This page holds no trace"),
        ("{\"format\":".to_owned(), "This page holds no trace"),
        ("null".to_owned(), "This page holds no trace of inlay"),
        ("[1, 2]".to_owned(), "This page holds no trace of inlay"),
        (
            json!({"format": "inlay-trace", "version": 2}).to_string(),
            "This trace has the version 2",
        ),
        (no_column.to_string(), "touches without the column wait"),
    ] {
        browser.open(&page(&text), "light");
        let shown = browser.text("[role=alert]");
        assert!(shown.contains(message), "{text}: {shown}");
        assert_eq!(browser.eval("return document.getElementById('main').hidden"), true);
    }
    browser.assert_quiet();
}

/// Changes of a good trace, each with what the page must say of it.
fn changes() -> Vec<(&'static str, Value)> {
    let many = i64::MAX;
    vec![
        (
            "was read and nothing was fetched",
            json!({"touches": null, "fetches": null, "path": [], "ready": null, "marks": []}),
        ),
        ("Nothing says when the start was ready", json!({"ready": null})),
        ("3 events found the recorder's buffer full", json!({"dropped": 3})),
        (
            "of the critical path are not explained",
            json!({"path": [{"from": 150_000, "to": 151_000, "kind": "store", "touch": 99, "fetch": -7}]}),
        ),
        ("", json!({"path": [{"from": 9, "to": 3, "kind": 7}, {"from": "x"}, null, 5]})),
        ("", json!({"files": []})),
        (
            "",
            json!({"files": null, "snapshots": {"a": 1}, "marks": "none", "host": [], "served": null, "title": 3, "command": {}}),
        ),
        (
            "",
            json!({"duration": many, "ready": many, "marks": [{"at": many, "name": "far"}, {"at": -many, "name": "before"}]}),
        ),
        (
            "",
            json!({"touches": {"columns": small()["touches"]["columns"], "rows": [[many, many, many, many, many, many, many, many], [-1, -many, -1, 9, -1, -1, 77, 5], [], ["a"], 3]}}),
        ),
        (
            "",
            json!({"fetches": {"columns": small()["fetches"]["columns"], "rows": [[-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1], [9, 8, 7, 6, 5, 4.5, 3, 2, 1, 8, 99], [many, 0, 0, 0, many, 0, 0, 0, many, 0, 0]]}}),
        ),
        ("", json!({"duration": 0, "ready": 0, "touches": null, "fetches": null, "path": []})),
    ]
}

#[test]
fn a_trace_that_contradicts_itself_is_shown_as_far_as_it_goes() {
    let browser = Browser::start(1280, 800);
    for (message, change) in changes() {
        let mut trace = small();
        for (name, value) in change.as_object().unwrap() {
            trace[name] = value.clone();
        }
        show(&browser, &trace, "light");
        let shown = browser.text("#warnings");
        assert!(shown.contains(message), "{change}: {shown}");
        // All that can be done with it, without an exception.
        browser.wheel((900, 400), -400);
        browser.point((900, 500));
        browser.click_at((700, 480));
        browser.click_at((700, 680));
        browser.keys("\u{E00C}\u{E00C}]][/lib\u{E007}\u{E007}\u{E00C}\u{E00C}+-0");
        browser.click("#tab-waits");
        browser.click("#tab-path");
        browser.click("#tab-waterfall");
        assert_eq!(
            browser.eval("return document.getElementById('main').hidden"),
            false,
            "{change}"
        );
        let sum: u32 = browser
            .texts("#sums .percent")
            .iter()
            .map(|text| text.replace(['.', ' ', '%'], "").parse::<u32>().unwrap())
            .sum();
        assert!(sum == 1000 || sum == 0, "{change}: {sum}");
        browser.assert_quiet();
    }
}
