//! Tests random mounts, unmounts and renames of the directories around them against a model. They
//! need root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::target_tests::{Host, Sandbox};
use super::*;

/// The names of sibling directories.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Op {
    /// Mounts in the directory of this name, or in the innermost mount there.
    Mount(usize),
    /// Swaps two directories.
    Exchange(usize, usize),
    Unmount(usize),
    /// Lazily unmounts all mounts nested there.
    UnmountLazily(usize),
    /// Another daemon takes over.
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let name = || 0..NAMES.len();
    prop_oneof![
        4 => name().prop_map(Op::Mount),
        4 => (name(), name()).prop_map(|(one, other)| Op::Exchange(one, other)),
        3 => name().prop_map(Op::Unmount),
        1 => name().prop_map(Op::UnmountLazily),
        1 => Just(Op::Reopen),
    ]
}

/// The mounts by the directory they were created in: their numbers, outermost first.
type Model = Vec<Vec<u64>>;

/// Returns the path of the `depth`th nested mount in the directory `name`.
fn path(name: &str, depth: usize) -> String {
    format!("/{name}{}", "/m".repeat(depth + 1))
}

fn check(host: &Host, sandbox: &Sandbox, names: &[usize], model: &Model) {
    let mut wanted = BTreeMap::new();
    for (name, dir) in NAMES.iter().zip(names) {
        for (depth, number) in model[*dir].iter().enumerate() {
            wanted.insert(*number, path(name, depth));
        }
    }
    let listed: BTreeMap<u64, String> = host
        .mounts
        .list()
        .into_iter()
        .map(|record| (record.seen.number(), record.mountpoint.to_path().display().to_string()))
        .collect();
    assert_eq!(listed, wanted);
    for (number, path) in &wanted {
        let found = host.mounts.find(&sandbox.caller(), path.as_ref()).unwrap().unwrap();
        assert_eq!(found.seen.number(), *number, "{path}");
        // Both implementations must agree.
        assert_eq!(found.seen.now().unwrap(), found.seen.now_as_listed().unwrap());
    }
    for (name, dir) in NAMES.iter().zip(names) {
        let next = path(name, model[*dir].len());
        assert!(host.mounts.find(&sandbox.caller(), next.as_ref()).unwrap().is_none(), "{next}");
    }
}

fn play(ops: &[Op]) {
    let (mut host, sandbox) = (Host::new(), Sandbox::new());
    for name in NAMES {
        fs::create_dir_all(sandbox.beneath(&format!("/{name}/m"))).unwrap();
    }
    // The directory that has each name, and the mounts in each directory.
    let mut names: Vec<usize> = (0..NAMES.len()).collect();
    let mut model: Model = vec![Vec::new(); NAMES.len()];
    for op in ops {
        match *op {
            Op::Mount(at) => {
                let on = &mut model[names[at]];
                let record = host.mount(
                    &sandbox,
                    &path(NAMES[at], on.len()),
                    WantedView::Writable(UpperPlace::Scratch),
                );
                on.push(record.unwrap().seen.number());
            }
            Op::Exchange(one, other) => {
                let [from, to] = [one, other].map(|at| sandbox.inside(&format!("/{}", NAMES[at])));
                renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE).unwrap();
                names.swap(one, other);
            }
            Op::Unmount(at) | Op::UnmountLazily(at) => {
                let on = &mut model[names[at]];
                let lazily = matches!(op, Op::UnmountLazily(_));
                let (depth, how) = match (lazily, on.len()) {
                    (_, 0) => (0, Umount::IfFree),
                    (true, _) => (0, Umount::Lazily),
                    (false, len) => (len - 1, Umount::IfFree),
                };
                let outcome = host.umount(&sandbox, &path(NAMES[at], depth), how);
                assert_eq!(outcome.is_ok(), !on.is_empty(), "{outcome:?}");
                on.truncate(depth);
            }
            Op::Reopen => host.reopen(),
        }
        check(&host, &sandbox, &names, &model);
    }
    host.mounts.end_owned_by("sb-1").unwrap();
    assert!(host.mounts.list().is_empty());
    for name in NAMES {
        assert_eq!(fs::read_dir(sandbox.inside(&format!("/{name}/m"))).unwrap().count(), 0);
    }
}

#[test]
fn mounts_are_found_wherever_they_were_moved() {
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    runner
        .run(&prop::collection::vec(op(), 1..25), |ops| {
            play(&ops);
            Ok(())
        })
        .unwrap();
}
