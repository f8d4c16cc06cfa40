//! The state directory: what a host keeps between runs, and where.

mod scratch;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scratch::Scratch;

use crate::snapshots::VerifiedIndexes;

const CACHE: &str = "cache";
const INDEXES: &str = "indexes";
const SCRATCH: &str = "tmp";

/// A state directory that could not be made or used.
#[derive(Debug, thiserror::Error)]
#[error("state directory: {path}: {source}; choose another with --state", path = path.display())]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

/// A state directory. Two of them never touch each other.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
    scratch: Arc<Scratch>,
    verified: Arc<VerifiedIndexes>,
}

impl State {
    /// Makes the directory at `path` and those in it, open to their owner alone.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError { path, source }
        };
        let root = std::path::absolute(path).map_err(at(path))?;
        for dir in [root.clone(), root.join(CACHE), root.join(INDEXES), root.join(SCRATCH)] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at(&dir))?;
        }
        let root = fs::canonicalize(&root).map_err(at(&root))?;
        let scratch = root.join(SCRATCH);
        let scratch = Arc::new(Scratch::new(&scratch).map_err(at(&scratch))?);
        Ok(Self { root, scratch, verified: Arc::default() })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Decoded groups.
    pub fn cache(&self) -> PathBuf {
        self.root.join(CACHE)
    }

    /// Verified indexes, ready to be mapped.
    pub fn indexes(&self) -> PathBuf {
        self.root.join(INDEXES)
    }

    /// The indexes in it that this process has hashed.
    pub(crate) fn verified(&self) -> &VerifiedIndexes {
        &self.verified
    }

    /// For files that live no longer than this process: its own directory, removed with the last
    /// clone of this state, or, after a crash, by the next command.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The store where none is named.
    pub fn embedded_store(&self) -> PathBuf {
        self.root.join("store")
    }
}
