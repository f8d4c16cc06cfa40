//! Where snapshots come from: directories, tar archives, container images.
//!
//! Every source ends as a [`Tree`]; the files' bytes go to a [`FileSink`] on the way and are never
//! held here.

mod error;
mod flatten;
mod layer;
mod options;
mod progress;
mod source;

pub use error::ImportError;
pub use flatten::{Flattener, Markers};
pub use layer::{FileLayer, Layer};
pub use options::{ImportOptions, Mounts, Platform};
pub use progress::{NoProgress, Phase, Progress};
pub use source::{Source, SourceError};

use inlay_store::tree::Tree;

#[cfg(doc)]
use inlay_store::pack::FileSink;

/// What an import gives.
#[derive(Debug)]
pub struct Imported {
    /// The tree, its files' bytes already in the sink.
    pub tree: Tree,
    /// The OCI image configuration as JSON, as the image has it; empty for other sources.
    pub config: Vec<u8>,
}
