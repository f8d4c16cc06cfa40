//! Replays what the fuzzers found worth keeping, and makes the seeds that they began with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/entries/mod.rs"]
mod entries;
mod fuzz_seeds;

type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("index", entries::index::run),
    ("patched_index", entries::index::run_patched),
    ("packed", entries::packed::run),
    ("group", entries::group::run),
    ("toc", entries::toc::run),
    ("profile", entries::profile::run),
    ("tar", entries::tar::run),
    ("layers", entries::tar::run_layers),
    ("oci", entries::image::run_oci),
    ("docker_archive", entries::image::run_docker_archive),
];

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

#[test]
fn the_corpus_of_each_target_passes() {
    for (target, run) in TARGETS {
        let corpus = fuzz_dir().join("corpus").join(target);
        let mut inputs = 0;
        for input in fs::read_dir(&corpus).unwrap() {
            let input = input.unwrap().path();
            // Shown when the test fails: which input it was.
            println!("{}", input.display());
            run(&fs::read(input).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", corpus.display());
    }
}

#[test]
fn the_seeds_are_valid_in_this_version() {
    fuzz_seeds::check(&fuzz_dir());
}

/// To be run when the format has changed: `cargo test --test fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes into the sources"]
fn make_seeds() {
    fuzz_seeds::write(&fuzz_dir()).unwrap();
}
