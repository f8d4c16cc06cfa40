//! What users can rely on: every promise of `docs/SEMANTICS.md` as a test of the same name, with the
//! built command on a state of its own. They need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../common/ahead.rs"]
mod ahead;
mod boot;
#[path = "../common/boxes.rs"]
mod boxes;
mod clients;
mod command;
mod confinement;
mod content;
mod copies;
mod endings;
#[path = "../common/http.rs"]
mod http;
mod identity;
mod images;
mod kernels;
mod live;
mod loading;
mod looks;
mod measured;
mod objects;
mod place;
mod power;
#[path = "../common/recorded.rs"]
mod recorded;
mod records;
mod sandboxes;
mod sealed;
mod writable;

use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../docs/SEMANTICS.md");

const SOURCES: [&str; 21] = [
    include_str!("boot.rs"),
    include_str!("clients.rs"),
    include_str!("command.rs"),
    include_str!("confinement.rs"),
    include_str!("content.rs"),
    include_str!("copies.rs"),
    include_str!("endings.rs"),
    include_str!("identity.rs"),
    include_str!("images.rs"),
    include_str!("kernels.rs"),
    include_str!("live.rs"),
    include_str!("loading.rs"),
    include_str!("looks.rs"),
    include_str!("main.rs"),
    include_str!("measured.rs"),
    include_str!("objects.rs"),
    include_str!("power.rs"),
    include_str!("records.rs"),
    include_str!("sandboxes.rs"),
    include_str!("sealed.rs"),
    include_str!("writable.rs"),
];

/// The test that compares is no promise itself.
const THIS: &str = "the_page_and_the_tests_name_the_same_promises";

#[test]
fn the_page_and_the_tests_name_the_same_promises() {
    let promised: Vec<&str> =
        PAGE.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    let headings = PAGE.lines().filter(|line| line.starts_with("### ")).count();
    assert_eq!(promised.len(), headings, "each heading of the third level is the name of a test");
    let tested: Vec<&str> = SOURCES
        .iter()
        .flat_map(|source| source.split("\n#[test]\nfn ").skip(1))
        .filter_map(|test| test.split_once('(').map(|(name, _)| name))
        .filter(|name| *name != THIS)
        .collect();
    let marks: usize = SOURCES.iter().map(|source| source.matches("\n#[test]\n").count()).sum();
    assert_eq!(tested.len() + 1, marks, "a test that could not be read from the source");
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names(&promised).len(), promised.len(), "a promise stands twice on the page");
    assert_eq!(names(&promised), names(&tested));
}
