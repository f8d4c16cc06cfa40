//! README: its tour is run as it stands there, and what it says is supported is what the scripts check.
//! Needs root, /dev/fuse, a runtime, and what `scripts/fixtures` makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod supported;
mod tour;

const README: &str = include_str!("../../README.md");

/// A section, from its heading to the next of its level.
fn section(heading: &str) -> &'static str {
    let start = format!("\n## {heading}\n");
    let section = README.split(start.as_str()).nth(1).expect("the section is gone");
    section.split("\n## ").next().unwrap_or(section)
}
