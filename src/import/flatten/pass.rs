//! One pass over a layer.

use std::collections::HashSet;

use inlay_store::pack::{Content, FileSink};
use inlay_store::tree::{Meta, NodeId, NodeKind};

use super::hidden::{HiddenInode, HiddenNames, Revisit, Revisits, Target};
use super::path::{Marker, join, split};
use super::walk::{Missing, Spot};
use super::{Ground, Markers, Wrong};
use crate::import::tar::{Archive, Body, Entry};

/// A layer that is being put below the ground.
pub(super) struct Pass<'f> {
    pub(super) ground: &'f mut Ground,
    pub(super) markers: Markers,
    sink: &'f mut dyn FileSink,
    /// Inodes from here on are this layer's.
    first_own: usize,
    /// Directories of layers above that this one gave the metadata of.
    claimed: HashSet<NodeId>,
    /// Directories of layers above that this one has something below.
    pub(super) touched: HashSet<NodeId>,
    pub(super) hidden: HiddenNames,
    revisits: Revisits,
    /// What lower layers will not show, but this one does.
    cuts: Vec<Vec<u8>>,
    opaques: Vec<Vec<u8>>,
    /// How many entries came before.
    ordinal: u64,
    /// Where the last entry's directory was: most entries have the same as the one before.
    last_dir: Option<(Vec<u8>, Spot)>,
}

/// Where an entry goes.
enum Slot {
    /// There: nothing of that name is left.
    Free(NodeId),
    /// Nowhere: something above hides it.
    Hidden,
}

impl Ground {
    /// Whether `path` in the directory `dir` is hidden by a marker of a layer above.
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

    /// Takes the next entry; `archive` gives its data. How many bytes were packed.
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
            match Marker::of(last)? {
                Marker::None => {}
                Marker::Meta => meta_name = true,
                Marker::Opaque => return self.opaque(dir).map(|()| 0),
                Marker::Whiteout(hidden) => return self.whiteout(dir, hidden).map(|()| 0),
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

    /// Makes what the layer hides count for those below. The files that must be read again.
    pub(super) fn finish(self) -> Revisits {
        let ground = self.ground;
        ground.cuts.extend(self.cuts.into_iter().map(Into::into));
        ground.opaques.extend(self.opaques.into_iter().map(Into::into));
        self.hidden.release(&mut ground.heap);
        self.revisits
    }

    /// Whether this layer has made the inode.
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
                // What the file has hidden of lower layers stays hidden.
                self.cut(path)?;
                self.last_dir = None;
            }
            None => {}
        }
        self.ground.tree.insert(dir, name, meta, NodeKind::Directory)?;
        Ok(())
    }

    /// Gives a directory its metadata, unless a layer above has done so. Of the entries of one
    /// layer the last counts.
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

    /// Puts in something without data: a symbolic link, a device, …
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
            (None, Some(node)) => Target::Placed(node),
            (None, None) => return Err(missing("which no entry of the layer before it is")),
        };
        if target_path == join(&spot.path, name) {
            return Ok(());
        }
        if let Target::Placed(node) = found
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
                Target::Placed(node) => Ok(self.ground.tree.link(dir, name, node)?),
                Target::Hidden(place) => self.unhide(dir, name, place),
            },
        }
    }

    /// Brings a hidden inode into the tree, by a visible name. A file's bytes come later.
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

    /// Makes room for something that is no directory.
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
            // The directory above hides it, and with it all that lies further down.
            self.cut(path)?;
        }
        Ok(Slot::Hidden)
    }
}
