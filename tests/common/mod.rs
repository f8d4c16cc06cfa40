//! What the whole-system tests share: a command line with a store, sources and their snapshots.
#![allow(dead_code, reason = "each test program uses a part of it")]

#[path = "boxes.rs"]
pub(crate) mod boxes;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use inlay_testkit::cli::Inlay;
use inlay_testkit::scratch;
use inlay_testkit::tree::EveryKind;
use inlay_testkit::weed::{BUCKET, Weed};
use serde_json::Value;
use tempfile::TempDir;

/// A command line with a state of its own and the store inside it.
pub(crate) fn local() -> Inlay {
    Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap()
}

/// A command line with a state of its own and a prefix of the bucket, reached through `address`.
pub(crate) fn s3(address: SocketAddr, prefix: &str) -> Inlay {
    local()
        .with_environment(Weed::environment(address))
        .with_environment([("INLAY_STORE", format!("s3://{BUCKET}/{prefix}"))])
}

/// A directory with every kind of object.
pub(crate) struct Source {
    scratch: TempDir,
}

impl Source {
    pub(crate) fn every_kind(recipe: EveryKind) -> Self {
        let source = Self { scratch: scratch().unwrap() };
        fs::create_dir(source.path()).unwrap();
        recipe.make(&source.path()).unwrap();
        source
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.scratch.path().join("source")
    }
}

/// `dir:PATH`, `tar:PATH` and so on.
pub(crate) fn of(kind: &str, path: &Path) -> String {
    format!("{kind}:{}", path.display())
}

/// Imports `source` under `name`; gives what the command says about it.
pub(crate) fn import(inlay: &Inlay, source: &str, name: &str) -> Value {
    let ran = inlay.succeed(["import", "--json", source, "--name", name]).unwrap();
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// All snapshots of the store.
pub(crate) fn snapshots(inlay: &Inlay) -> Vec<Value> {
    let ran = inlay.succeed(["snapshots", "--json"]).unwrap();
    serde_json::from_slice(&ran.stdout).unwrap()
}
