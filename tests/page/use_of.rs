//! What a person does with the page: wheel, drag, keys, search, filters, pointing, pinning, tables.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::{column, show, start};

/// Five reads of three files, two of which waited for the same fetch, and a fetch that failed.
pub(crate) fn small() -> Value {
    json!({
        "format": "inlay-trace", "version": 1, "title": "sleep", "command": ["sleep"], "duration": 200_000,
        "ready": 160_000, "ready_by": "exit 0", "dropped": 0, "host": {}, "snapshots": [{"id": "img-1", "name": "base"}],
        "marks": [{"at": 0, "name": "begin"}, {"at": 160_000, "name": "ready", "detail": "exit 0"}],
        "files": [["/bin/sleep", 0, 40_000], ["/lib/libc.so.6", 0, 2_000_000], ["/etc/ld.so.cache", 0, 9_000]],
        "touches": {"columns": ["at", "wait", "file", "tier", "offset", "bytes", "fetch", "first"], "rows": [
            [10_000, 52_000, 0, 3, 0, 40_000, 0, 1], [62_500, 41, 1, 1, 0, 4096, -1, 1],
            [70_000, 80_500, 1, 3, 131_072, 131_072, 1, 0], [71_000, 79_500, 2, 2, 0, 9_000, 1, 1],
            [155_000, 12, 1, 4, 0, 0, -1, 0]]},
        "fetches": {"columns": ["queued", "sent", "first_byte", "received", "ready", "class", "snapshot", "groups", "bytes", "outcome", "file"], "rows": [
            [10_100, 10_200, 60_200, 61_200, 61_900, 0, 0, 1, 20_480, 0, 0],
            [70_100, 72_100, 120_000, 150_000, 150_400, 1, 0, 3, 1_048_576, 0, 1],
            [90_000, 90_100, -1, -1, 120_000, 4, 0, 1, 4096, 1, -1]]},
        "served": {"requests": 9, "time": 800, "reads": 5},
        "path": [
            {"from": 0, "to": 10_000, "kind": "attach", "touch": -1, "fetch": -1, "what": "mount"},
            {"from": 10_000, "to": 62_000, "kind": "store", "touch": 0, "fetch": 0, "what": ""},
            {"from": 62_000, "to": 70_000, "kind": "running", "touch": -1, "fetch": -1, "what": ""},
            {"from": 70_000, "to": 150_500, "kind": "store", "touch": 2, "fetch": 1, "what": ""},
            {"from": 150_500, "to": 160_000, "kind": "running", "touch": -1, "fetch": -1, "what": ""}],
        "totals": {}
    })
}

/// Where a touch or a fetch is in the window: the middle of its bar.
fn place(browser: &Browser, kind: &str, index: usize) -> (i64, i64) {
    let found = browser.eval(&format!(
        "const {{panes, view}} = inlayTrace, fetch = '{kind}' === 'fetch', t = view.trace, i = {index}; \
         const pane = fetch ? panes.fetch : panes.file; const row = fetch ? i : t.rows.ofTouch[i]; \
         const [from, to] = fetch ? [t.fetches.start[i], t.fetches.end[i]] : [t.touches.at[i], t.touches.end[i]]; \
         const box = pane.box.getBoundingClientRect(); \
         return [box.left + pane.picture.x((from + to) / 2), box.top + pane.index(row) * 18 + 9 - pane.box.scrollTop].map(Math.round)"
    ));
    (found[0].as_i64().unwrap(), found[1].as_i64().unwrap())
}

fn range(browser: &Browser) -> (f64, f64) {
    let range = browser.eval("return [inlayTrace.view.from, inlayTrace.view.to]");
    (range[0].as_f64().unwrap(), range[1].as_f64().unwrap())
}

fn time_at(browser: &Browser, x: i64) -> f64 {
    let script = format!(
        "const p = inlayTrace.panes.file; return p.picture.at({x} - p.box.getBoundingClientRect().left)"
    );
    browser.eval(&script).as_f64().unwrap()
}

/// Whether a row of a pane is where one sees it.
fn sees(browser: &Browser, pane: &str, row: &str) -> bool {
    let script = format!(
        "const p = inlayTrace.panes.{pane}, top = p.index({row}) * 18 - p.box.scrollTop; \
         return p.rows()[p.index({row})] === {row} && top >= 0 && top + 18 <= p.box.clientHeight"
    );
    browser.eval(&script) == true
}

#[test]
fn wheel_drag_and_keys_change_the_range() {
    let browser = Browser::start(1280, 800);
    show(&browser, &start::python(), "light");
    let (whole, all) = (range(&browser), browser.text("#range"));
    let at = (900, 700);
    let before = time_at(&browser, at.0);
    browser.wheel(at, -600);
    let near = range(&browser);
    assert!(near.1 - near.0 < (whole.1 - whole.0) * 0.5, "{near:?} of {whole:?}");
    assert_ne!(browser.text("#range"), all);
    // What was under the pointer still is.
    assert!((time_at(&browser, at.0) - before).abs() < (near.1 - near.0) / 500.0);
    // Rows that have nothing in the range are gone, those that are there have something in it.
    let script = "const {view} = inlayTrace, {rows, touches} = view.trace; return [view.files.length, rows.length, \
         view.files.every((row) => [...rows.touch.subarray(rows.begin[row], rows.begin[row + 1])].some((t) => touches.end[t] >= view.from && touches.at[t] <= view.to))]";
    let rows = browser.eval(script);
    assert!(rows[0].as_u64() < rows[1].as_u64() && rows[0] != 0 && rows[2] == true, "{rows}");

    browser.drag((900, 650), 200);
    let moved = range(&browser);
    let expected = near.0 - 200.0 * (near.1 - near.0) / (1280.0 - 342.0 - 15.0);
    assert!((moved.0 - expected).abs() < (near.1 - near.0) / 50.0, "{moved:?} after {near:?}");
    browser.keys("\u{E014}");
    assert!(range(&browser).0 > moved.0, "the right arrow");
    browser.keys("+");
    assert!(range(&browser).1 - range(&browser).0 < moved.1 - moved.0, "plus");
    browser.keys("-");
    browser.keys("0");
    assert_eq!(range(&browser), whole);
    browser.wheel(at, -600);
    browser.wheel(at, 3000);
    let (from, to) = range(&browser);
    assert!(from == 0.0 && to >= whole.1, "all the way out");
    // Over the names it scrolls and does not zoom.
    browser.wheel((100, 700), 200);
    assert_eq!(range(&browser), (from, to));
    assert!(browser.eval("return inlayTrace.panes.file.box.scrollTop").as_f64().unwrap() > 100.0);
    browser.assert_quiet();
}

#[test]
fn search_counts_matches_and_jumps_to_them() {
    let trace = start::python();
    let browser = Browser::start(1280, 800);
    show(&browser, &trace, "light");
    let files: Vec<&str> =
        trace["files"].as_array().unwrap().iter().map(|file| file[0].as_str().unwrap()).collect();
    let hit = |file: &Value| {
        usize::try_from(file.as_i64().unwrap()).is_ok_and(|file| files[file].contains("sklearn"))
    };
    let mut touched = column(&trace, "touches", "file");
    touched.retain(|file| hit(file));
    touched.sort_by_key(|file| file.as_i64());
    touched.dedup();
    let fetched = column(&trace, "fetches", "file").into_iter().filter(|file| hit(file)).count();
    let all = touched.len() + fetched;
    assert!(all > 20);

    browser.keys("/");
    browser.keys("SKlearn");
    assert_eq!(browser.text("#hits"), format!("{all} hits"));
    // From a range that has none of them.
    browser.eval("document.getElementById('search').blur()");
    browser.keys("0++++++++[");
    browser.keys("/\u{E007}");
    assert_eq!(browser.text("#hits"), format!("1 of {all}"));
    let first = "inlayTrace.view.hits[0].index";
    assert!(sees(&browser, "file", first), "the first hit is not in sight");
    let (from, to) = range(&browser);
    let at = browser
        .eval(&format!("return inlayTrace.view.trace.rows.start[{first}]"))
        .as_f64()
        .unwrap();
    assert!(from <= at && at <= to, "{at} is not in {from} to {to}");
    browser.screenshot("search");
    browser.click("#hit-back");
    assert_eq!(browser.text("#hits"), format!("{all} of {all}"));
    assert!(
        sees(&browser, "fetch", &format!("inlayTrace.view.hits[{all} - 1].index")),
        "the last hit is not in sight"
    );
    browser.click("#search");
    browser.keys("-none");
    assert_eq!(browser.text("#hits"), "no hits");
    browser.keys("\u{E00C}\u{E00C}");
    assert_eq!(browser.text("#hits"), "");
    browser.assert_quiet();
}

#[test]
fn filters_hide_their_category() {
    let trace = start::python();
    let browser = Browser::start(1280, 800);
    show(&browser, &trace, "light");
    browser.click("#fit");
    let of_class = |class: i64| {
        column(&trace, "fetches", "class").iter().filter(|n| n.as_i64() == Some(class)).count()
    };
    let all = trace["fetches"]["rows"].as_array().unwrap().len();
    assert_eq!(browser.text("#fetch-count"), all.to_string());
    browser.click("#classes button[data-n='3']");
    assert_eq!(browser.text("#fetch-count"), format!("{} of {all}", all - of_class(3)));
    assert_eq!(
        browser.eval("return document.querySelector('#classes button[data-n=\"3\"]').ariaPressed"),
        "false"
    );
    browser.click("#classes button[data-n='3']");
    assert_eq!(browser.text("#fetch-count"), all.to_string());

    // Only those files are left of which a read needed a fetch.
    let mut missed: Vec<&Value> = column(&trace, "touches", "tier")
        .into_iter()
        .zip(column(&trace, "touches", "file"))
        .filter(|(tier, _)| **tier == 3)
        .map(|(_, file)| file)
        .collect();
    missed.sort_by_key(|file| file.as_i64());
    missed.dedup();
    for tier in [0, 1, 2] {
        browser.click(&format!("#tiers button[data-n='{tier}']"));
    }
    let files = start::FILES;
    assert_eq!(browser.text("#file-count"), format!("{} of {files}", missed.len()));
    browser.eval("const order = document.getElementById('order'); order.value = 'longest'; order.dispatchEvent(new Event('change'))");
    let falling = "const {view} = inlayTrace, {wait} = view.trace.rows; return view.files.every((row, n) => n === 0 || wait[view.files[n - 1]] >= wait[row])";
    assert_eq!(browser.eval(falling), true);
    browser.screenshot("filtered");
    browser.assert_quiet();
}

#[test]
fn hover_shows_figures_and_a_click_shows_related_events() {
    let browser = Browser::start(1280, 800);
    show(&browser, &small(), "light");
    browser.point(place(&browser, "touch", 2));
    let tip = browser.text("#tip");
    for words in [
        "/lib/libc.so.6",
        "Later read, fetched for it",
        "70.0 ms",
        "80.5 ms",
        "128 KiB",
        "1.91 MiB",
        "base",
        "yes: the start waited",
    ] {
        assert!(tip.contains(words), "{words:?} is not in {tip}");
    }
    browser.point(place(&browser, "fetch", 1));
    let tip = browser.text("#tip");
    for words in [
        "Fetch, read-ahead",
        "2.00 ms",
        "47.9 ms",
        "30.0 ms",
        "400 µs",
        "1.00 MiB",
        "33.3 MiB/s",
        "Reads answered\n2",
    ] {
        assert!(tip.contains(words), "{words:?} is not in {tip}");
    }
    browser.point(place(&browser, "fetch", 2));
    assert!(browser.text("#tip").contains("Outcome\nfailed"));

    // In the middle of that transfer, in the picture of bandwidth.
    let (x, _) = place(&browser, "touch", 2);
    let by =
        browser.eval("return document.getElementById('axis').getBoundingClientRect().bottom - 10");
    let pixel = browser.eval("return inlayTrace.panes.file.picture.perUs").as_f64().unwrap();
    #[allow(clippy::cast_possible_truncation, reason = "pixels of a window")]
    let (x, y) = (x + (24_750.0 * pixel) as i64, by.as_f64().unwrap() as i64);
    browser.point((x, y));
    let tip = browser.text("#tip");
    for words in ["135.0 ms", "33.3 MiB/s", "Requests under way\n1"] {
        assert!(tip.contains(words), "{words:?} is not in {tip}");
    }

    browser.click_at(place(&browser, "fetch", 1));
    let linked = browser.eval("const {links, pinned} = inlayTrace.view; return [pinned, [...links.touches], [...links.fetches]]");
    assert_eq!(linked, json!([{"type": "fetch", "index": 1}, [2, 3], [1]]));
    browser.screenshot("pinned");
    // From the fetch to a read that it answered, and back.
    browser.click("#tip .links li:nth-child(2) button");
    assert_eq!(browser.eval("return inlayTrace.view.pinned"), json!({"type": "touch", "index": 3}));
    browser.click("#tip .links button");
    assert_eq!(browser.eval("return inlayTrace.view.pinned"), json!({"type": "fetch", "index": 1}));
    browser.keys("\u{E00C}");
    assert_eq!(
        browser.eval("return [inlayTrace.view.pinned, document.getElementById('tip').hidden]"),
        json!([null, true])
    );

    // Along the critical path by key: only what was waited for.
    browser.keys("]]");
    assert_eq!(browser.eval("return inlayTrace.view.pinned"), json!({"type": "path", "index": 3}));
    assert!(browser.text("#tip").contains("80.5 ms") && browser.text("#tip").contains("50.3 %"));
    browser.keys("[");
    assert_eq!(browser.eval("return inlayTrace.view.pinned"), json!({"type": "path", "index": 1}));
    browser.keys("\u{E00C}");
    browser.click("#worst-list button");
    assert_eq!(browser.eval("return inlayTrace.view.pinned"), json!({"type": "path", "index": 3}));
    browser.assert_quiet();
}

#[test]
fn the_rows_can_be_read_without_a_pointer() {
    let browser = Browser::start(1280, 800);
    show(&browser, &small(), "dark");
    browser.eval("inlayTrace.panes.file.box.focus()");
    browser.keys("\u{E015}\u{E015}");
    assert!(browser.text("#tip").contains("/lib/libc.so.6"));
    browser.keys("\u{E007}");
    assert_eq!(browser.eval("return inlayTrace.view.pinned"), json!({"type": "file", "index": 1}));

    browser.click("#tab-waits");
    let waits = || browser.texts("#table-body td:nth-child(2)");
    assert_eq!(waits(), ["80.5 ms", "79.5 ms", "52.0 ms", "41 µs", "12 µs"]);
    browser.click("#table-head th:nth-child(2) button");
    assert_eq!(waits(), ["12 µs", "41 µs", "52.0 ms", "79.5 ms", "80.5 ms"]);
    browser.screenshot("table");
    browser.click("#tab-path");
    assert_eq!(
        browser.texts("#table-body td:nth-child(2)"),
        ["10.0 ms", "52.0 ms", "8.00 ms", "80.5 ms", "9.50 ms"]
    );
    browser.click("#table-body tr:nth-child(4) .path button");
    assert_eq!(
        browser
            .eval("return [inlayTrace.view.pinned, document.getElementById('waterfall').hidden]"),
        json!([{"type": "path", "index": 3}, false])
    );
    // Everything that can be used has a name.
    let nameless = "return [...document.querySelectorAll('button, input, select, [tabindex], [role=img]')].filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)";
    assert_eq!(browser.eval(nameless), json!([]));
    browser.assert_quiet();
}
