//! Shares the handling of container images between their sources: digests, manifests, platforms.

mod blob;
mod error;
mod manifest;
mod pick;
#[cfg(test)]
pub(super) mod testing;

use inlay_store::pack::FileSink;

use super::{Flattener, ImportError, ImportOptions, Imported, Layer, Markers, Progress};

pub(super) use blob::{
    BlobDigest, BlobHasher, VerifiedLayer, VerifiedReader, open_file, read_bounded,
};
pub use error::ImageError;
pub(super) use manifest::{Descriptor, Document, ImageManifest, check_config};
pub(super) use pick::{Manifests, resolve, with_tag};

/// Maximum size of a manifest, an index or a configuration, in bytes.
pub(super) const JSON_LEN_MAX: u64 = 4 << 20;
/// Maximum layers of an image. Engines stop at 127.
pub(super) const LAYERS_MAX: usize = 1024;

/// Flattens `layers`, given from the bottom up, into one tree. Every layer is read to its end,
/// where its digest is verified.
pub(super) fn flatten(
    mut layers: Vec<Box<dyn Layer>>,
    config: Vec<u8>,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let mut flattener = Flattener::new(options, Markers::Apply, sink, progress);
    while let Some(mut layer) = layers.pop() {
        flattener.layer(layer.as_mut())?;
    }
    Ok(Imported { tree: flattener.finish(), config })
}
