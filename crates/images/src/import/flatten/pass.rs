//! Runs one pass over a layer.

use std::collections::HashSet;

use inlay_store::pack::{Content, FileSink};
use inlay_store::tree::{Meta, NodeId, NodeKind};

use super::hidden::{HiddenInode, HiddenNames, HiddenTarget, Revisit, Revisits};
use super::path::{WhiteoutMarker, join, split};
use super::walk::{Missing, Spot};
use super::{Ground, Markers, Wrong};
use crate::import::tar::{Archive, Body, Entry};

/// A layer being added below the ones before.
pub(super) struct Pass<'f> {
    pub(super) ground: &'f mut Ground,
    pub(super) markers: Markers,
    sink: &'f mut dyn FileSink,
    /// Inodes from this position on belong to this layer.
    first_own: usize,
    /// Directories of upper layers with metadata set by this layer.
    claimed: HashSet<NodeId>,
    /// Directories of upper layers below which this layer has entries.
    pub(super) touched: HashSet<NodeId>,
    pub(super) hidden: HiddenNames,
    revisits: Revisits,
    /// Paths and directories that this layer hides in lower layers, but not in itself.
    cuts: Vec<Vec<u8>>,
    opaques: Vec<Vec<u8>>,
    /// Number of entries before the current one.
    ordinal: u64,
    /// Resolved directory of the last entry: most entries share it with the one before. Must be
    /// reset whenever an entry may change how paths resolve.
    last_dir: Option<(Vec<u8>, Spot)>,
}

/// Destination of an entry.
enum Slot {
    /// In this directory, where the name is free.
    Free(NodeId),
    /// None: an upper layer hides it.
    Hidden,
}

impl Ground {
    /// Whether a marker of an upper layer hides `path` in the directory `dir`.
    pub(super) fn hides(&self, dir: &[u8], path: &[u8]) -> bool {
        (!self.cuts.is_empty() && self.cuts.contains(path))
            || (!self.opaques.is_empty() && self.opaques.contains(dir))
    }
}

impl<'f> Pass<'f> {
    pub(super) fn new(
        ground: &'f mut Ground,
        markers: Markers,
        sink: &'f mut dyn FileSink,
    ) -> Self {
        Self {
            first_own: ground.tree.node_count(),
            ground,
            markers,
            sink,
            claimed: HashSet::new(),
            touched: HashSet::new(),
            hidden: HiddenNames::default(),
            revisits: Revisits::new(),
            cuts: Vec::new(),
            opaques: Vec::new(),
            ordinal: 0,
            last_dir: None,
        }
    }

    /// Adds the next entry, with its data from `archive`. Returns the number of bytes packed.
    pub(super) fn take(
        &mut self,
        name: &[u8],
        entry: Entry,
        archive: &mut Archive,
    ) -> Result<u64, Wrong> {
        let ordinal = self.ordinal;
        self.ordinal += 1;
        let Entry { meta, body, .. } = entry;
        let Some((dir, last)) = split(name)? else {
            return match body {
                Body::Node(NodeKind::Directory) => self.give_meta(NodeId::ROOT, meta).map(|()| 0),
                _ => Err(Wrong::Entry("the root is no directory".into())),
            };
        };
        let mut meta_name = false;
        if self.markers == Markers::Apply {
            match WhiteoutMarker::of(last)? {
                WhiteoutMarker::None => {}
                WhiteoutMarker::Meta => meta_name = true,
                WhiteoutMarker::Opaque => return self.opaque(dir).map(|()| 0),
                WhiteoutMarker::Whiteout(hidden) => return self.whiteout(dir, hidden).map(|()| 0),
            }
        }
        let mut spot = self.find(dir)?;
        if meta_name {
            spot.dir = None;
        }
        match body {
            Body::Node(NodeKind::Directory) => self.directory(&spot, last, meta).map(|()| 0),
            Body::Node(kind) => self.inode(&spot, last, ordinal, meta, kind).map(|()| 0),
            Body::HardLink(target) => self.hard_link(&spot, last, &target).map(|()| 0),
            Body::Regular { size, data } => match self.slot(&spot, last)? {
                Slot::Free(dir) => {
                    let content = self.sink.add_file(size, &data, archive)?;
                    self.ground.tree.insert(
                        dir,
                        last,
                        meta,
                        NodeKind::Regular { size, content },
                    )?;
                    Ok(data.iter().map(|range| range.end - range.start).sum())
                }
                Slot::Hidden => {
                    let kind = NodeKind::Regular { size, content: Content::Hole };
                    self.hide(&spot, last, HiddenInode { meta, kind, ordinal, placed: None })?;
                    Ok(0)
                }
            },
        }
    }

    /// Applies the layer's whiteouts to the layers below. Returns the files to read in a second
    /// pass.
    pub(super) fn finish(self) -> Revisits {
        let ground = self.ground;
        ground.cuts.extend(self.cuts.into_iter().map(Into::into));
        ground.opaques.extend(self.opaques.into_iter().map(Into::into));
        self.hidden.release(&mut ground.heap);
        self.revisits
    }

    /// Whether this layer created the inode.
    pub(super) fn is_own(&self, node: NodeId) -> bool {
        node.place() >= self.first_own
    }

    fn find(&mut self, dir: &[u8]) -> Result<Spot, Wrong> {
        if let Some((known, spot)) = &self.last_dir
            && known == dir
        {
            return Ok(spot.clone());
        }
        let spot = self.walk(dir, Missing::Make)?;
        self.last_dir = Some((dir.to_vec(), spot.clone()));
        Ok(spot)
    }

    fn opaque(&mut self, dir: &[u8]) -> Result<(), Wrong> {
        let spot = self.walk(dir, Missing::Leave)?;
        self.ground.heap.take(spot.path.len())?;
        self.opaques.push(spot.path);
        Ok(())
    }

    fn whiteout(&mut self, dir: &[u8], hidden: &[u8]) -> Result<(), Wrong> {
        let spot = self.walk(dir, Missing::Leave)?;
        self.cut(join(&spot.path, hidden))
    }

    fn cut(&mut self, path: Vec<u8>) -> Result<(), Wrong> {
        self.ground.heap.take(path.len())?;
        self.cuts.push(path);
        Ok(())
    }

    fn directory(&mut self, spot: &Spot, name: &[u8], meta: Meta) -> Result<(), Wrong> {
        let path = join(&spot.path, name);
        if self.hidden.get(&path).is_some() {
            self.hidden.remove(&path);
            self.last_dir = None;
        }
        let Some(dir) = spot.dir.filter(|_| !self.ground.hides(&spot.path, &path)) else {
            return Ok(());
        };
        let there = self.ground.tree.child(dir, name);
        match there {
            Some(node) if matches!(self.ground.tree.kind(node), NodeKind::Directory) => {
                return self.give_meta(node, meta);
            }
            Some(node) if !self.is_own(node) => return Ok(()),
            Some(_) => {
                // Entries of lower layers that the file has hidden stay hidden.
                self.cut(path)?;
                self.last_dir = None;
            }
            None => {}
        }
        self.ground.tree.insert(dir, name, meta, NodeKind::Directory)?;
        Ok(())
    }

    /// Sets a directory's metadata, unless an upper layer has done so. The last entry of a layer
    /// wins.
    fn give_meta(&mut self, node: NodeId, meta: Meta) -> Result<(), Wrong> {
        let implicit = self.ground.implicit.remove(&node);
        if implicit && !self.is_own(node) {
            self.claimed.insert(node);
        }
        if implicit || self.is_own(node) || self.claimed.contains(&node) {
            self.ground.tree.set_meta(node, meta)?;
        }
        Ok(())
    }

    /// Adds an object without data: a symbolic link, a device, …
    fn inode(
        &mut self,
        spot: &Spot,
        name: &[u8],
        ordinal: u64,
        meta: Meta,
        kind: NodeKind,
    ) -> Result<(), Wrong> {
        match self.slot(spot, name)? {
            Slot::Free(dir) => {
                self.ground.tree.insert(dir, name, meta, kind)?;
                Ok(())
            }
            Slot::Hidden => {
                self.hide(spot, name, HiddenInode { meta, kind, ordinal, placed: None })
            }
        }
    }

    fn hide(&mut self, spot: &Spot, name: &[u8], inode: HiddenInode) -> Result<(), Wrong> {
        let heap = &mut self.ground.heap;
        let target = self.hidden.add_inode(inode, heap)?;
        self.hidden.add_name(join(&spot.path, name), target, heap)
    }

    fn hard_link(&mut self, spot: &Spot, name: &[u8], target: &[u8]) -> Result<(), Wrong> {
        let missing = |why| Wrong::Entry(format!("it links to '{}', {why}", target.escape_ascii()));
        let Some((target_dir, target_name)) = split(target)? else {
            return Err(missing("which is a directory"));
        };
        let target_spot = self.walk(target_dir, Missing::Leave)?;
        let target_path = join(&target_spot.path, target_name);
        let own = target_spot.dir.and_then(|dir| self.ground.tree.child(dir, target_name));
        let found = match (self.hidden.get(&target_path), own.filter(|&node| self.is_own(node))) {
            (Some(target), _) => target,
            (None, Some(node)) => HiddenTarget::Placed(node),
            (None, None) => return Err(missing("which no entry of the layer before it is")),
        };
        if target_path == join(&spot.path, name) {
            return Ok(());
        }
        if let HiddenTarget::Placed(node) = found
            && matches!(self.ground.tree.kind(node), NodeKind::Directory)
        {
            return Err(missing("which is a directory"));
        }
        match self.slot(spot, name)? {
            Slot::Hidden => {
                let path = join(&spot.path, name);
                self.hidden.add_name(path, found, &mut self.ground.heap)
            }
            Slot::Free(dir) => match found {
                HiddenTarget::Placed(node) => Ok(self.ground.tree.link(dir, name, node)?),
                HiddenTarget::Hidden(place) => self.unhide(dir, name, place),
            },
        }
    }

    /// Adds a hidden inode to the tree under a visible name. A file's contents follow in the second
    /// pass.
    fn unhide(&mut self, dir: NodeId, name: &[u8], place: usize) -> Result<(), Wrong> {
        let Some(inode) = self.hidden.inode(place) else { return Ok(()) };
        let node = self.ground.tree.insert(dir, name, inode.meta.clone(), inode.kind.clone())?;
        inode.placed = Some(node);
        if let NodeKind::Regular { size, .. } = inode.kind
            && size > 0
        {
            self.revisits.insert(inode.ordinal, Revisit { node, size });
        }
        Ok(())
    }

    /// Finds the destination of a non-directory, which may replace an earlier entry of the same
    /// name.
    fn slot(&mut self, spot: &Spot, name: &[u8]) -> Result<Slot, Wrong> {
        let path = join(&spot.path, name);
        self.hidden.remove(&path);
        let Some(dir) = spot.dir.filter(|_| !self.ground.hides(&spot.path, &path)) else {
            self.last_dir = None;
            return Ok(Slot::Hidden);
        };
        let Some(node) = self.ground.tree.child(dir, name) else { return Ok(Slot::Free(dir)) };
        self.last_dir = None;
        let replaced = || {
            Wrong::Entry("it takes the place of a directory that the layer itself has given".into())
        };
        let is_dir = matches!(self.ground.tree.kind(node), NodeKind::Directory);
        if self.is_own(node) {
            if is_dir && self.ground.tree.entries(node).next().is_some() {
                return Err(replaced());
            }
            return Ok(Slot::Free(dir));
        }
        if is_dir {
            if self.touched.contains(&node) || self.claimed.contains(&node) {
                return Err(replaced());
            }
            // The directory of the upper layer hides it, and everything at this path further down.
            self.cut(path)?;
        }
        Ok(Slot::Hidden)
    }
}
