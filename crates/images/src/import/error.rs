//! Defines the errors of an import.

use std::io;
use std::path::PathBuf;

use inlay_store::pack::PackError;
use inlay_store::tree::TreeError;

use super::{ImageError, RegistryError};

/// The reason a source cannot be imported. Entry names may be arbitrary bytes; messages escape
/// them.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file of the source could not be opened or read.
    #[error("{path}: {what}: {source}", path = path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The operation that failed.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A file or directory was modified concurrently during the import.
    #[error("{path} {what} while it was read; import again when nothing writes there",
        path = path.display())]
    Changed {
        /// Path of the object.
        path: PathBuf,
        /// The modification.
        what: &'static str,
    },
    /// A layer could not be fetched or decompressed.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Name of the layer.
        layer: String,
        /// The error of its reader.
        source: io::Error,
    },
    /// A layer is not a valid tar archive.
    #[error(
        "layer {layer} is not a valid tar archive: {why} (at byte {at} of the decompressed data)"
    )]
    Archive {
        /// Name of the layer.
        layer: String,
        /// The defect.
        why: String,
        /// Its offset in the decompressed data, in bytes.
        at: u64,
    },
    /// An entry of an archive cannot be added to the tree.
    #[error("layer {layer}, entry '{}': {why}", entry.escape_ascii())]
    Entry {
        /// Name of the layer.
        layer: String,
        /// Name of the entry, as stored in the archive.
        entry: Box<[u8]>,
        /// The defect.
        why: String,
    },
    /// An object does not fit into the tree.
    #[error("'{}': {source}", path.escape_ascii())]
    Tree {
        /// Its path inside the tree.
        path: Box<[u8]>,
        /// The error of the tree.
        source: TreeError,
    },
    /// A file's contents could not be packed.
    #[error("'{}': {source}", path.escape_ascii())]
    Pack {
        /// Its path inside the tree.
        path: Box<[u8]>,
        /// The error of the packer.
        source: PackError,
    },
    /// A limit of the import is exceeded.
    #[error("{what} has more than {limit} {of}, the limit")]
    Limit {
        /// The object that exceeds it.
        what: String,
        /// The unit that is counted.
        of: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The source requires an unsupported feature.
    #[error("{what} is not supported")]
    Unsupported {
        /// The feature.
        what: String,
    },
    /// An image, its manifests or its configuration is unusable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A registry failed to deliver an image.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}
