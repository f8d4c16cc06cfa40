//! Where snapshots come from: directories, tar archives, container images.
//!
//! Every source ends as a [`Tree`]; the files' bytes go to a [`FileSink`] on the way and are never
//! held here.

pub(crate) mod dir;
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
mod tar;
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
pub use registry::{
    PlainHttp, RegistryError, RegistryOptions, Retry, docker_config_dir, import_registry,
};
pub use run::import;
pub use source::{Source, SourceError};

use inlay_store::pack::FileSink;
use inlay_store::tree::{Tree, TreeLimits};

/// What an import gives.
#[derive(Debug)]
pub struct Imported {
    /// The tree, its files' bytes already in the sink.
    pub tree: Tree,
    /// The OCI image configuration as JSON, as the image has it; empty for other sources.
    pub config: Vec<u8>,
}

/// Takes the tree in a tar archive. Names that begin with `.wh.` are nothing special in it.
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

/// Takes the tree in a tar archive in memory, which may decode to `decoded_bytes_max` bytes.
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
