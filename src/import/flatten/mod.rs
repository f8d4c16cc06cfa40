//! From layers to one tree.
//!
//! Layers come from the top down. An entry of a lower layer counts only if nothing above has taken
//! its place: so of everything only what stays visible is packed, in one pass over each layer. What
//! comes out is what unpacking from the bottom up, with whiteouts, would leave behind.

mod hidden;
mod pass;
mod path;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::HashSet;

use inlay_store::pack::{FileSink, PackError};
use inlay_store::tree::{NodeId, Tree, TreeError};

use super::tar::{Archive, Body, Budget, EndMark};
use super::{ImportError, ImportOptions, Layer, Phase, Progress};
use hidden::Revisits;
use pass::Pass;

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
    ground: Ground,
    markers: Markers,
    budget: Budget,
    sink: &'a mut dyn FileSink,
    progress: &'a dyn Progress,
}

/// What the layers above have left: the tree, and what they hide.
struct Ground {
    tree: Tree,
    /// Directories that stand only because something lies below them: the next layer's entry gives
    /// their metadata.
    implicit: HashSet<NodeId>,
    /// Paths that are hidden with all below them: whited out, or once something else.
    cuts: HashSet<Box<[u8]>>,
    /// Directories below which all is hidden.
    opaques: HashSet<Box<[u8]>>,
    heap: Heap,
}

/// Bounds the bytes of paths that are remembered beside the tree.
struct Heap {
    left: u64,
    limit: u64,
}

impl Heap {
    /// What a remembered path costs beside its bytes.
    const OVERHEAD: u64 = 96;

    fn take(&mut self, len: usize) -> Result<(), Wrong> {
        let left = self.left.checked_sub(len as u64 + Self::OVERHEAD);
        self.left = left.ok_or(Wrong::Heap(self.limit))?;
        Ok(())
    }
}

/// What can be wrong with an entry, without saying which.
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
    /// An empty tree. Files' bytes go to `sink`.
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

    /// Puts `layer` below those that were given before. After an error the flattener is of no more
    /// use.
    pub fn layer(&mut self, layer: &mut dyn Layer) -> Result<(), ImportError> {
        let name = layer.name();
        self.progress.phase(Phase::Reading, &name);
        let mut archive = self.open(layer)?;
        let mut pass = Pass::new(&mut self.ground, self.markers, self.sink);
        while let Some(mut entry) = archive.next()? {
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

    /// The tree that all layers together give.
    pub fn finish(self) -> Tree {
        self.ground.tree
    }

    /// Packs files that a first pass took for hidden: entries of the layer, counted from 0.
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
        while let Some(entry) = archive.next()? {
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
