//! Imports snapshots from directories, tar archives and container images.
//!
//! Every source yields a [`Tree`]. File contents stream into a [`FileSink`] and are never held
//! here.

pub mod dir;
mod docker_archive;
mod error;
mod flatten;
mod image;
mod layer;
mod oci;
#[cfg(test)]
mod oci_tests;
mod options;
mod progress;
mod registry;
mod run;
mod source;
pub mod tar;
#[cfg(test)]
mod testing;

pub use dir::import_dir;
pub use docker_archive::import_docker_archive;
pub use error::ImportError;
pub use flatten::{Flattener, Markers};
pub use image::ImageError;
pub use layer::{BytesLayer, FileLayer, Layer, StdinLayer};
pub use oci::import_oci;
pub use options::{ImportOptions, Mounts, Platform};
pub use progress::{NoProgress, Phase, Progress};
pub use registry::{PlainHttp, RegistryError, RegistryOptions, Retry, import_registry};
pub use run::import;
pub use source::{Source, SourceError};

use inlay_store::pack::FileSink;
use inlay_store::tree::{Tree, TreeLimits};

/// Result of an import.
#[derive(Debug)]
pub struct Imported {
    /// The tree; its file contents are already in the sink.
    pub tree: Tree,
    /// The OCI image configuration as JSON, unmodified; empty for other sources.
    pub config: Vec<u8>,
}

/// Imports a tar archive, in which names that begin with `.wh.` have no special meaning.
pub fn import_tar(
    archive: &mut dyn Layer,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Tree, ImportError> {
    let mut flattener = Flattener::new(options, Markers::Literal, sink, progress);
    flattener.layer(archive)?;
    Ok(flattener.finish())
}

/// Imports a tar archive in memory, which must not decompress to more than `decoded_bytes_max`
/// bytes.
pub fn import_tar_bytes(
    archive: &[u8],
    tree: TreeLimits,
    decoded_bytes_max: u64,
    sink: &mut dyn FileSink,
) -> Result<Tree, ImportError> {
    let options = ImportOptions { tree, decoded_bytes_max, ..ImportOptions::default() };
    let mut layer = BytesLayer::new("archive", archive.to_vec());
    import_tar(&mut layer, &options, sink, &NoProgress)
}
