//! Defines the state directory: the data that a host keeps between runs, and its layout.

mod scratch;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inlay_store::ids::Digest;
use scratch::Scratch;

use crate::VerifiedIndexes;

const CACHE: &str = "cache";
const INDEXES: &str = "indexes";
const SCRATCH: &str = "tmp";

/// The state directory could not be created or used.
#[derive(Debug, thiserror::Error)]
#[error("state directory: {path}: {source}; choose another with --state", path = path.display())]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

/// A state directory. Two of them never share files.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
    scratch: Arc<Scratch>,
    verified: Arc<VerifiedIndexes>,
}

impl State {
    /// Creates the directory at `path` and its subdirectories, mode 0700.
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

    /// Path of the directory.
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

    /// Indexes hashed by this process.
    pub(crate) fn verified(&self) -> &VerifiedIndexes {
        &self.verified
    }

    /// Directory for temporary files of this process. Removed with the last clone of this state or,
    /// after a crash, by the next command.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Snapshots sealed on this host and waiting for upload.
    pub fn outboxes(&self) -> PathBuf {
        self.root.join("outbox")
    }

    /// Outbox of the store at `url`, in the daemon's spelling; `None` for the embedded store.
    pub fn outbox(&self, url: Option<&str>) -> PathBuf {
        self.outboxes().join(Digest::of(url.unwrap_or_default().as_bytes()).to_hex())
    }

    /// Returns `url`, or the path of the embedded store.
    pub fn store_url(&self, url: Option<&str>) -> String {
        url.map_or_else(|| self.embedded_store().display().to_string(), str::to_owned)
    }

    /// Path of the embedded store, the default.
    pub fn embedded_store(&self) -> PathBuf {
        embedded_store(&self.root)
    }
}

/// Path of the embedded store below the state directory `root`.
pub fn embedded_store(root: &Path) -> PathBuf {
    root.join("store")
}
