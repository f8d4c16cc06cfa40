//! The state directory: what a host keeps between runs, and where.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

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
}

impl State {
    /// Makes the directory at `path` and those in it, open to their owner alone.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError { path, source }
        };
        let root = std::path::absolute(path).map_err(at(path))?;
        let state = Self { root };
        for dir in [&state.root, &state.cache(), &state.indexes(), &state.scratch()] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        }
        let root = fs::canonicalize(&state.root).map_err(at(&state.root))?;
        Ok(Self { root })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Decoded groups.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Verified indexes, ready to be mapped.
    pub fn indexes(&self) -> PathBuf {
        self.root.join("indexes")
    }

    /// Files that live no longer than the command that made them.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The store where none is named.
    pub fn embedded_store(&self) -> PathBuf {
        self.root.join("store")
    }
}
