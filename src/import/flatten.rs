//! From layers to one tree.

use inlay_store::pack::FileSink;
use inlay_store::tree::Tree;

use super::{ImportError, ImportOptions, Layer, Progress};

/// What names that begin with `.wh.` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Markers {
    /// They hide entries of lower layers, as in an OCI image.
    Apply,
    /// They are names like any other.
    Literal,
}

/// Flattens layers into one tree. Layers are given from the top down, so that of everything only
/// what stays visible is packed.
pub struct Flattener<'a> {
    tree: Tree,
    sink: &'a mut dyn FileSink,
    progress: &'a dyn Progress,
}

impl<'a> Flattener<'a> {
    /// An empty tree. Files' bytes go to `sink`.
    pub fn new(
        options: &ImportOptions,
        markers: Markers,
        sink: &'a mut dyn FileSink,
        progress: &'a dyn Progress,
    ) -> Self {
        let _ = markers;
        Self { tree: Tree::new(options.tree), sink, progress }
    }

    /// Puts `layer` below those that were given before.
    pub fn layer(&mut self, layer: &mut dyn Layer) -> Result<(), ImportError> {
        let _ = (&mut self.sink, self.progress);
        Err(ImportError::Unsupported { what: layer.name() })
    }

    /// The tree that all layers together give.
    pub fn finish(self) -> Tree {
        self.tree
    }
}
