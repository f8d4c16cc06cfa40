//! What can go wrong in an import.

use std::io;
use std::path::PathBuf;

use inlay_store::pack::PackError;
use inlay_store::tree::TreeError;

use super::{ImageError, RegistryError};

/// Why a source can't be imported. Names of entries may be any bytes; messages show them escaped.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Something of the source can't be opened or read.
    #[error("{path}: {what}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What was done with it.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A file or directory was changed by someone else during the import.
    #[error("{path} {what} while it was read; import again when nobody writes there",
        path = path.display())]
    Changed {
        /// Which.
        path: PathBuf,
        /// What happened to it.
        what: &'static str,
    },
    /// A layer's bytes can't be had or can't be decompressed.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Which.
        layer: String,
        /// What its reader says.
        source: io::Error,
    },
    /// A layer is not a valid tar archive.
    #[error("layer {layer} is no valid tar archive: {why} (at byte {at} of the decompressed data)")]
    Archive {
        /// Which.
        layer: String,
        /// What is wrong.
        why: String,
        /// Where.
        at: u64,
    },
    /// An entry of an archive can't be taken into the tree.
    #[error("layer {layer}, entry '{}': {why}", entry.escape_ascii())]
    Entry {
        /// Which layer.
        layer: String,
        /// The entry's name as the archive has it.
        entry: Box<[u8]>,
        /// What is wrong with it.
        why: String,
    },
    /// An object does not fit into a tree.
    #[error("'{}': {source}", path.escape_ascii())]
    Tree {
        /// Its path inside the tree.
        path: Box<[u8]>,
        /// What the tree says.
        source: TreeError,
    },
    /// A file's bytes could not be packed.
    #[error("'{}': {source}", path.escape_ascii())]
    Pack {
        /// Its path inside the tree.
        path: Box<[u8]>,
        /// What the packer says.
        source: PackError,
    },
    /// More than the limits of the import allow.
    #[error("{what} has more than the {limit} {of} that are allowed")]
    Limit {
        /// What is too large.
        what: String,
        /// Of what it has too much.
        of: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The source needs something that this program does not do.
    #[error("{what} is not supported")]
    Unsupported {
        /// What.
        what: String,
    },
    /// An image, its manifests or its configuration can't be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A registry does not give an image.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}
