//! Checks that the dependencies between the workspace's crates match docs/ARCHITECTURE.md.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

type Arrows = BTreeMap<String, BTreeSet<String>>;

fn drawn(root: &Path) -> Arrows {
    let page = std::fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
    let (_, rest) = page.split_once("```arrows\n").unwrap();
    let (lines, _) = rest.split_once("```").unwrap();
    let names = |list: &str| {
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let arrow = |line: &str| {
        let (from, to) = line.split_once("->").unwrap();
        (from.trim().to_owned(), names(to))
    };
    lines.lines().map(arrow).collect()
}

fn real(root: &Path) -> Arrows {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let all: BTreeSet<String> = packages.iter().map(name).collect();
    let of = |package: &serde_json::Value| {
        let needed = package["dependencies"].as_array().unwrap();
        // Dev-dependencies have a kind.
        needed
            .iter()
            .filter(|one| one["kind"].is_null())
            .map(name)
            .filter(|it| all.contains(it))
            .collect()
    };
    packages.iter().map(|package| (name(package), of(package))).collect()
}

#[test]
fn crates_depend_on_each_other_as_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    assert_eq!(real(root), drawn(root));
}
