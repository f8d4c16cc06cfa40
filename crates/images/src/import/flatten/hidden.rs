//! Tracks a layer's entries that upper layers hide, while the layer is being read.
//!
//! They are needed because a later entry of the layer may be a visible hard link to one of them, or
//! lie below a hidden symbolic link.

use std::collections::{BTreeMap, HashMap};

use inlay_store::tree::{Meta, NodeId, NodeKind};

use super::{Heap, Wrong};

/// Entries of a layer to read in a second pass, by ordinal.
pub(super) type Revisits = HashMap<u64, Revisit>;

/// A file to fill with the contents of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revisit {
    pub(super) node: NodeId,
    pub(super) size: u64,
}

/// Referent of a hidden name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HiddenTarget {
    /// An inode in the tree.
    Placed(NodeId),
    /// An inode with only hidden names so far.
    Hidden(usize),
}

/// An inode without a visible name.
#[derive(Debug)]
pub(super) struct HiddenInode {
    pub(super) meta: Meta,
    pub(super) kind: NodeKind,
    /// Position of its entry in the layer.
    pub(super) ordinal: u64,
    /// Its node once a visible link has added it to the tree.
    pub(super) placed: Option<NodeId>,
}

/// Hidden names of a layer by normalised path, with their inodes.
#[derive(Debug, Default)]
pub(super) struct HiddenNames {
    names: BTreeMap<Vec<u8>, HiddenTarget>,
    inodes: Vec<HiddenInode>,
    charged: u64,
}

impl HiddenNames {
    pub(super) fn get(&self, path: &[u8]) -> Option<HiddenTarget> {
        let target = *self.names.get(path)?;
        match target {
            HiddenTarget::Hidden(place) => {
                let placed = self.inodes.get(place).and_then(|inode| inode.placed);
                Some(placed.map_or(target, HiddenTarget::Placed))
            }
            HiddenTarget::Placed(_) => Some(target),
        }
    }

    pub(super) fn inode(&mut self, place: usize) -> Option<&mut HiddenInode> {
        self.inodes.get_mut(place)
    }

    pub(super) fn add_inode(
        &mut self,
        inode: HiddenInode,
        heap: &mut Heap,
    ) -> Result<HiddenTarget, Wrong> {
        let attributes: usize =
            inode.meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let target = if let NodeKind::Symlink(target) = &inode.kind { target.len() } else { 0 };
        self.charge(attributes + target, heap)?;
        self.inodes.push(inode);
        Ok(HiddenTarget::Hidden(self.inodes.len() - 1))
    }

    pub(super) fn add_name(
        &mut self,
        path: Vec<u8>,
        target: HiddenTarget,
        heap: &mut Heap,
    ) -> Result<(), Wrong> {
        self.charge(path.len(), heap)?;
        self.names.insert(path, target);
        Ok(())
    }

    /// Removes `path` and everything below it.
    pub(super) fn remove(&mut self, path: &[u8]) {
        if self.names.is_empty() {
            return;
        }
        self.names.remove(path);
        let mut below = path.to_vec();
        below.push(b'/');
        while let Some((name, _)) = self.names.range(below.clone()..).next() {
            if !name.starts_with(&below) {
                break;
            }
            let name = name.clone();
            self.names.remove(&name);
        }
    }

    /// Returns the charged bytes to `heap`.
    pub(super) fn release(self, heap: &mut Heap) {
        heap.left = heap.left.saturating_add(self.charged);
    }

    fn charge(&mut self, len: usize, heap: &mut Heap) -> Result<(), Wrong> {
        let before = heap.left;
        heap.take(len)?;
        self.charged += before - heap.left;
        Ok(())
    }
}
