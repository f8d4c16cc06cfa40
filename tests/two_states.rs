//! Two states side by side never touch each other, whether their store is the same or not.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;

use common::{Source, import, local, of, snapshots};
use inlay_testkit::tree::EveryKind;
use inlay_testkit::{Comparison, scratch};
use serde_json::Value;

const RECIPE: EveryKind = EveryKind { entries: 20, large: 1 << 20 };

#[test]
fn embedded_stores_are_apart() {
    let source = Source::every_kind(RECIPE);
    let (one, two) = (local(), local());
    import(&one, &of("dir", &source.path()), "base");
    assert_eq!(snapshots(&one).len(), 1);
    assert_eq!(snapshots(&two).len(), 0);
    two.fail(["ls", "base"]).unwrap();
}

#[test]
fn mounts_of_one_store_are_apart() {
    let source = Source::every_kind(RECIPE);
    let shared = scratch().unwrap();
    let store = shared.path().join("store");
    let host = || local().with_environment([("INLAY_STORE", &store)]);
    let (one, two) = (host(), host());
    import(&one, &of("dir", &source.path()), "base");

    let first = one.mount("base", &["--rw"]).unwrap();
    let second = two.mount("base", &["--rw"]).unwrap();
    fs::write(first.path().join("mine"), b"first").unwrap();
    assert!(!second.path().join("mine").exists());
    let mounts = |inlay: &inlay_testkit::cli::Inlay| {
        let ran = inlay.succeed(["mounts", "--json"]).unwrap();
        serde_json::from_slice::<Vec<Value>>(&ran.stdout).unwrap().len()
    };
    assert_eq!((mounts(&one), mounts(&two)), (1, 1));

    // What one host does to its mount, cache and state is nothing to the other.
    let not_its_own = two.fail(["umount".as_ref(), first.path().as_os_str()]).unwrap();
    assert!(not_its_own.stderr.contains("no mount on"), "{not_its_own:?}");
    first.unmount().unwrap();
    one.wait_until_quiet().unwrap();
    fs::remove_dir_all(one.state()).unwrap();
    // An overlay does not tell where holes are below it, nor how many directories are in its root.
    let comparison = Comparison::default()
        .holes(inlay_testkit::Holes::Ignore)
        .without_field("directory", "link count");
    comparison.run(&source.path(), second.path()).unwrap();
    second.unmount().unwrap();
}

#[test]
fn the_option_wins_over_the_environment() {
    let source = Source::every_kind(RECIPE);
    let inlay = local();
    let other = scratch().unwrap();
    let state = other.path().join("state").display().to_string();
    let store = other.path().join("store").display().to_string();
    let options = ["--state", &state, "--store", &store];
    let source = of("dir", &source.path());
    inlay.succeed(options.into_iter().chain(["import", &source, "--name", "base"])).unwrap();
    assert_eq!(snapshots(&inlay).len(), 0);
    inlay.succeed(options.into_iter().chain(["ls", "base:/sizes"])).unwrap();
}
