//! Entries of a layer that are hidden by what lies above, as long as the layer is read.
//!
//! They are kept because a later entry of the layer may be a visible hard link to one of them, or
//! lie below a hidden symbolic link.

use std::collections::{BTreeMap, HashMap};

use inlay_store::tree::{Meta, NodeId, NodeKind};

use super::{Heap, Wrong};

/// Files of a layer to read again: the entry's place in the layer, and what to fill.
pub(super) type Revisits = HashMap<u64, Revisit>;

/// A file to fill with the bytes of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revisit {
    pub(super) node: NodeId,
    pub(super) size: u64,
}

/// What a hidden name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// An inode that is in the tree.
    Placed(NodeId),
    /// An inode all of whose names are hidden so far.
    Hidden(usize),
}

/// An inode without a visible name.
#[derive(Debug)]
pub(super) struct HiddenInode {
    pub(super) meta: Meta,
    pub(super) kind: NodeKind,
    /// Its entry's place in the layer.
    pub(super) ordinal: u64,
    /// Where it is, once a visible link has brought it into the tree.
    pub(super) placed: Option<NodeId>,
}

/// The hidden names of a layer by their normalised paths, and their inodes.
#[derive(Debug, Default)]
pub(super) struct HiddenNames {
    names: BTreeMap<Vec<u8>, Target>,
    inodes: Vec<HiddenInode>,
    charged: u64,
}

impl HiddenNames {
    pub(super) fn get(&self, path: &[u8]) -> Option<Target> {
        let target = *self.names.get(path)?;
        match target {
            Target::Hidden(place) => {
                let placed = self.inodes.get(place).and_then(|inode| inode.placed);
                Some(placed.map_or(target, Target::Placed))
            }
            Target::Placed(_) => Some(target),
        }
    }

    pub(super) fn inode(&mut self, place: usize) -> Option<&mut HiddenInode> {
        self.inodes.get_mut(place)
    }

    pub(super) fn add_inode(
        &mut self,
        inode: HiddenInode,
        heap: &mut Heap,
    ) -> Result<Target, Wrong> {
        let attributes: usize =
            inode.meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let target = if let NodeKind::Symlink(target) = &inode.kind { target.len() } else { 0 };
        self.charge(attributes + target, heap)?;
        self.inodes.push(inode);
        Ok(Target::Hidden(self.inodes.len() - 1))
    }

    pub(super) fn add_name(
        &mut self,
        path: Vec<u8>,
        target: Target,
        heap: &mut Heap,
    ) -> Result<(), Wrong> {
        self.charge(path.len(), heap)?;
        self.names.insert(path, target);
        Ok(())
    }

    /// Forgets `path`, and all below it.
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

    /// Gives back what the names took of `heap`.
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
