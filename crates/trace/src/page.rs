//! Renders the waterfall of a trace as one self-contained HTML page that needs no network.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// Order of concatenation: each file uses only definitions of earlier ones, or uses them only after
/// all files have been evaluated.
const SCRIPTS: [&str; 9] = [
    include_str!("page/format.js"),
    include_str!("page/data.js"),
    include_str!("page/view.js"),
    include_str!("page/draw.js"),
    include_str!("page/panes.js"),
    include_str!("page/details.js"),
    include_str!("page/summary.js"),
    include_str!("page/table.js"),
    include_str!("page/page.js"),
];

/// Renders the page for a trace, given as the recorder's JSON.
///
/// Safe for untrusted text: it cannot end its element, and the page's content security policy
/// allows one script and one style by their hashes and nothing else, including network access. If
/// the text is not a trace, the page says so.
pub fn page(trace_json: &str) -> String {
    let script = script();
    let mut page =
        String::with_capacity(PAGE.len() + STYLE.len() + script.len() + trace_json.len());
    // Literal text and names of placeholders alternate.
    for (place, part) in PAGE.split("@@").enumerate() {
        page.push_str(&if place % 2 == 0 {
            Cow::Borrowed(part)
        } else {
            filled(part, &script, trace_json)
        });
    }
    page
}

fn filled<'a>(name: &str, script: &'a str, trace_json: &'a str) -> Cow<'a, str> {
    match name {
        "style" => STYLE.into(),
        "script" => script.into(),
        "style-hash" => hash(STYLE).into(),
        "script-hash" => hash(script).into(),
        // In JSON, `<` occurs only within strings, where the escape is equivalent.
        "trace" => trace_json.replace('<', "\\u003c").into(),
        _ => "".into(),
    }
}

/// Wraps the scripts in a block, so that their definitions are invisible to other scripts on the
/// page.
fn script() -> String {
    format!("\"use strict\";\n{{\n{}}}\n", SCRIPTS.concat())
}

/// Returns the source expression of an inline script or style in a content security policy.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn trace_contents_are_never_interpreted_as_markup() {
        let hostile = r#"{"title":"</script><script>alert(1)</script><!--<script>@@style@@"}"#;
        let page = page(hostile);
        let (_, rest) = page.split_once("<script type=\"application/json\" id=\"trace\">").unwrap();
        let (data, rest) = rest.split_once("</script>").unwrap();
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(data), read(hostile));
        assert!(!data.contains('<'));
        assert_eq!(rest.matches("<script").count(), 1);
    }

    #[test]
    fn the_policy_allows_exactly_the_script_and_style_of_the_page() {
        let page = page("{}");
        let between = |from: &str, to: &str| {
            page.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned()
        };
        let policy = between("Content-Security-Policy\" content=\"", "\"");
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(
            policy.contains(&format!("script-src {};", hash(&between("<script>", "</script>"))))
        );
        assert!(policy.contains(&format!("style-src {};", hash(&between("<style>", "</style>")))));
    }

    #[test]
    fn every_placeholder_is_filled_in() {
        for (place, name) in PAGE.split("@@").enumerate() {
            assert!(place % 2 == 0 || !filled(name, "script", "trace").is_empty(), "{name}");
        }
        assert_eq!(PAGE.matches("@@").count() % 2, 0);
        assert!(!script().contains("</script") && !STYLE.contains("</style"));
    }
}
