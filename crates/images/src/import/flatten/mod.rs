//! Flattens layers into one tree.
//!
//! Layers are processed from the top down. An entry of a lower layer counts only if no upper layer
//! hides it, so only visible files are packed, in one pass over each layer. The result equals
//! unpacking from the bottom up with whiteouts applied.

mod hidden;
mod pass;
mod path;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::HashSet;

use hidden::Revisits;
use inlay_store::pack::{FileSink, PackError};
use inlay_store::tree::{NodeId, Tree, TreeError};
use pass::Pass;

use super::tar::{Archive, Body, Budget, EndMark};
use super::{ImportError, ImportOptions, Layer, Phase, Progress};

/// Interpretation of names that begin with `.wh.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Markers {
    /// Whiteouts that hide entries of lower layers, as in an OCI image.
    Apply,
    /// Ordinary names.
    Literal,
}

/// Flattens layers into one tree. The caller adds layers from the top down, so that only visible
/// files are packed.
pub struct Flattener<'a> {
    ground: Ground,
    markers: Markers,
    budget: Budget,
    sink: &'a mut dyn FileSink,
    progress: &'a dyn Progress,
}

/// Result of the layers so far: the tree, and the paths they hide in lower layers.
struct Ground {
    tree: Tree,
    /// Directories that exist only as parents of other entries: the next layer with an entry for
    /// one sets its metadata.
    implicit: HashSet<NodeId>,
    /// Paths hidden together with everything below them: whited out, or not a directory in an upper
    /// layer.
    cuts: HashSet<Box<[u8]>>,
    /// Directories with hidden contents.
    opaques: HashSet<Box<[u8]>>,
    heap: Heap,
}

/// Bounds the memory of paths stored outside the tree.
struct Heap {
    left: u64,
    limit: u64,
}

impl Heap {
    /// Overhead of a stored path beyond its bytes.
    const OVERHEAD: u64 = 96;

    fn take(&mut self, len: usize) -> Result<(), Wrong> {
        let left = self.left.checked_sub(len as u64 + Self::OVERHEAD);
        self.left = left.ok_or(Wrong::Heap(self.limit))?;
        Ok(())
    }
}

/// A defect of an entry, without its name.
enum Wrong {
    Entry(String),
    Tree(TreeError),
    Pack(PackError),
    Heap(u64),
}

impl From<TreeError> for Wrong {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<PackError> for Wrong {
    fn from(error: PackError) -> Self {
        Self::Pack(error)
    }
}

impl Wrong {
    fn of(self, layer: &str, entry: &[u8]) -> ImportError {
        let entry = || entry.iter().copied().take(4096).collect();
        match self {
            Self::Entry(why) => ImportError::Entry { layer: layer.into(), entry: entry(), why },
            Self::Tree(source) => ImportError::Tree { path: entry(), source },
            Self::Pack(source) => ImportError::Pack { path: entry(), source },
            Self::Heap(limit) => {
                ImportError::Limit { what: layer.into(), of: "bytes of hidden paths", limit }
            }
        }
    }
}

impl<'a> Flattener<'a> {
    /// Creates an empty tree. File contents go to `sink`.
    pub fn new(
        options: &ImportOptions,
        markers: Markers,
        sink: &'a mut dyn FileSink,
        progress: &'a dyn Progress,
    ) -> Self {
        let heap = Heap { left: options.tree.heap_bytes, limit: options.tree.heap_bytes };
        let ground = Ground {
            tree: Tree::new(options.tree),
            implicit: HashSet::from([NodeId::ROOT]),
            cuts: HashSet::new(),
            opaques: HashSet::new(),
            heap,
        };
        let budget = Budget { spent: 0, limit: options.decoded_bytes_max };
        Self { ground, markers, budget, sink, progress }
    }

    /// Adds `layer` below the previous ones. After an error the flattener must not be used.
    pub fn layer(&mut self, layer: &mut dyn Layer) -> Result<(), ImportError> {
        let name = layer.name();
        self.progress.phase(Phase::Reading, &name);
        let mut archive = self.open(layer)?;
        let mut pass = Pass::new(&mut self.ground, self.markers, self.sink);
        while let Some(mut entry) = archive.next_entry()? {
            let entry_name = std::mem::take(&mut entry.name);
            match pass.take(&entry_name, entry, &mut archive) {
                Ok(bytes) => self.progress.advance(1, bytes),
                Err(wrong) => {
                    return Err(archive.take_failure().unwrap_or(wrong.of(&name, &entry_name)));
                }
            }
        }
        let revisits = pass.finish();
        self.close(archive)?;
        if revisits.is_empty() {
            return Ok(());
        }
        self.progress.phase(Phase::Revisiting, &name);
        self.revisit(layer, &name, revisits)
    }

    /// Returns the tree of all layers.
    pub fn finish(self) -> Tree {
        self.ground.tree
    }

    /// Packs files that the first pass took for hidden, by ordinal of their entries from 0.
    fn revisit(
        &mut self,
        layer: &mut dyn Layer,
        name: &str,
        mut wanted: Revisits,
    ) -> Result<(), ImportError> {
        let changed = |at| ImportError::Archive {
            layer: name.to_owned(),
            why: "it is not the same when it is read again".into(),
            at,
        };
        let mut archive = self.open(layer)?;
        let mut ordinal = 0;
        while let Some(entry) = archive.next_entry()? {
            let revisit = wanted.remove(&ordinal);
            ordinal += 1;
            let Some(revisit) = revisit else { continue };
            let Body::Regular { size, data } = entry.body else { return Err(changed(ordinal)) };
            if size != revisit.size {
                return Err(changed(ordinal));
            }
            let content = self.sink.add_file(size, &data, &mut archive).map_err(Wrong::Pack);
            let stored = content.and_then(|content| {
                self.ground.tree.set_content(revisit.node, content).map_err(Wrong::Tree)
            });
            if let Err(wrong) = stored {
                return Err(archive.take_failure().unwrap_or(wrong.of(name, &entry.name)));
            }
            self.progress.advance(1, data.iter().map(|range| range.end - range.start).sum());
        }
        self.close(archive)?;
        if wanted.is_empty() { Ok(()) } else { Err(changed(ordinal)) }
    }

    fn open(&mut self, layer: &mut dyn Layer) -> Result<Archive, ImportError> {
        let end_mark = match self.markers {
            Markers::Apply => EndMark::Optional,
            Markers::Literal => EndMark::Required,
        };
        Archive::open(layer, self.budget, end_mark)
    }

    fn close(&mut self, archive: Archive) -> Result<(), ImportError> {
        self.budget = archive.finish()?;
        Ok(())
    }
}
