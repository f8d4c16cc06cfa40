//! Builds the tree of the new snapshot from the merged tree and the places of file contents.

use std::collections::HashMap;
use std::path::PathBuf;

use inlay_images::import::Progress;
use inlay_store::format::{FileKind, InodeIdx};
use inlay_store::pack::{AdoptError, Adopter, Content, Packer};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeError, TreeLimits, Xattr};

use super::error::CaptureError;
use super::layer::{Extra, visible_xattr};
use super::mapped::Mapped;
use super::merged_view::{Mounted, Picture};
use super::owned;
use super::scan::{DirIdx, Entry};
use super::stat::{InodeId, Stamp, Stat};
use super::subject::{LeftOut, LeftOutWhy, Underneath};
use super::walk::{Here, Object, Source, Visitor};

/// The maximum number of excluded paths to report individually.
const EXCLUDED_MAX: usize = 1000;

/// The contents of files in upper directories that this capture has packed.
pub(super) type Packed = HashMap<InodeId, (Stamp, Content)>;

/// Adopters for files and groups of existing snapshots.
pub(super) struct Earlier {
    /// From the last snapshot of the same directory.
    pub(super) last: Option<Adopter>,
    /// From the lower snapshots, by mount number.
    pub(super) lower: Vec<Option<Adopter>>,
}

/// An object of an upper directory that became a node of the tree.
pub(super) struct Taken {
    pub(super) id: InodeId,
    pub(super) stamp: Stamp,
    pub(super) node: NodeId,
}

/// The inputs of a build.
pub(super) struct Parts<'a> {
    pub(super) picture: &'a Picture,
    pub(super) packer: &'a mut Packer,
    pub(super) earlier: &'a mut Earlier,
    pub(super) packed: &'a Packed,
    pub(super) mapped: &'a Mapped,
    pub(super) progress: &'a dyn Progress,
}

/// A completed tree.
pub(super) struct Built {
    pub(super) tree: Tree,
    /// The objects that the next capture may recognize as unchanged.
    pub(super) taken: Vec<Taken>,
    /// Paths excluded by patterns, up to [`EXCLUDED_MAX`], and the number of further ones.
    pub(super) left_out: Vec<LeftOut>,
    pub(super) left_out_more: u64,
    /// Names, including the root's.
    pub(super) entries: u64,
}

/// Builds the tree as a visitor of the merged tree.
pub(super) struct Builder<'a> {
    parts: Parts<'a>,
    built: Built,
    /// The nodes of inodes with several hard links.
    upper_links: HashMap<InodeId, NodeId>,
    lower_links: HashMap<(usize, InodeIdx), NodeId>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(parts: Parts<'a>, limits: TreeLimits) -> Self {
        let built = Built {
            tree: Tree::new(limits),
            taken: Vec::new(),
            left_out: Vec::new(),
            left_out_more: 0,
            entries: 1,
        };
        Self { parts, built, upper_links: HashMap::new(), lower_links: HashMap::new() }
    }

    pub(super) fn finish(self) -> Built {
        self.built
    }

    /// Sets the root's metadata to that of the captured directory.
    pub(super) fn root(&mut self) -> Result<(), CaptureError> {
        let meta = self.root_meta(0)?;
        let set = self.built.tree.set_meta(NodeId::ROOT, meta);
        set.map_err(|source| CaptureError::Tree { path: PathBuf::from("/"), source })
    }

    fn mounted(&self, mount: usize) -> Result<&'a Mounted, CaptureError> {
        let missing = CaptureError::Overlay { path: PathBuf::new(), what: "no such mount" };
        self.parts.picture.mounts.get(mount).ok_or(missing)
    }

    /// Returns the metadata of a mount's root directory.
    fn root_meta(&self, mount: usize) -> Result<Meta, CaptureError> {
        let mounted = self.mounted(mount)?;
        match (&mounted.upper, mounted.lower) {
            (Some(upper), _) => {
                let stat = upper.scan.dir(DirIdx::ROOT).map_or(&upper.stat, |dir| &dir.stat);
                Ok(upper_meta(stat, upper.extra.as_ref()))
            }
            (None, Some(inode)) => lower_meta(mounted, inode),
            (None, None) => Ok(Meta { perm: 0o755, ..Meta::default() }),
        }
    }

    fn lower_node(
        &mut self,
        object: &Object<'_>,
        inode: InodeIdx,
    ) -> Result<(Meta, NodeKind), CaptureError> {
        let mounted = self.mounted(object.mount)?;
        let meta = lower_meta(mounted, inode)?;
        let wrong = mounted.wrong_index();
        let Some(lower) = &mounted.view.lower else { return Ok((meta, NodeKind::Directory)) };
        let attr = lower.index.attr(inode).map_err(&wrong)?;
        let kind = match attr.kind {
            FileKind::Directory => NodeKind::Directory,
            FileKind::Symlink => {
                NodeKind::Symlink(lower.index.symlink(inode).map_err(&wrong)?.into())
            }
            FileKind::CharDevice => NodeKind::CharDevice(attr.device),
            FileKind::BlockDevice => NodeKind::BlockDevice(attr.device),
            FileKind::Fifo => NodeKind::Fifo,
            FileKind::Socket => NodeKind::Socket,
            FileKind::Regular => {
                let content = self.adopt_lower(object.mount, mounted, inode)?;
                NodeKind::Regular { size: attr.size, content }
            }
        };
        Ok((meta, kind))
    }

    fn adopt_lower(
        &mut self,
        mount: usize,
        mounted: &Mounted,
        inode: InodeIdx,
    ) -> Result<Content, CaptureError> {
        let Some(Some(adopter)) = self.parts.earlier.lower.get_mut(mount) else {
            return Err(CaptureError::Overlay { path: PathBuf::new(), what: "no snapshot below" });
        };
        self.parts.packer.adopt(adopter, inode).map_err(|error| match error {
            AdoptError::Format(source) => mounted.wrong_index()(source),
            AdoptError::Pack(source) => source.into(),
        })
    }

    fn upper_node(
        &mut self,
        object: &Object<'_>,
        entry: &Entry,
        below: Option<(InodeIdx, FileKind)>,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<(Meta, NodeKind), CaptureError> {
        let mounted = self.mounted(object.mount)?;
        let extra = self.extra(entry)?;
        let meta = upper_meta(&entry.stat, extra.as_ref());
        let rdev = entry.stat.rdev;
        let kind = match object.kind {
            FileKind::Directory => NodeKind::Directory,
            FileKind::Symlink => {
                let target = extra.and_then(|extra| extra.target);
                NodeKind::Symlink(target.unwrap_or_default())
            }
            FileKind::CharDevice => NodeKind::CharDevice(rdev),
            FileKind::BlockDevice => NodeKind::BlockDevice(rdev),
            FileKind::Fifo => NodeKind::Fifo,
            FileKind::Socket => NodeKind::Socket,
            FileKind::Regular => {
                let size = entry.stat.stamp.size;
                let content = if extra.is_some_and(|extra| extra.metacopy) {
                    self.metacopy(object.mount, mounted, size, below, path)?
                } else {
                    self.upper_content(entry, path)?
                };
                NodeKind::Regular { size, content }
            }
        };
        Ok((meta, kind))
    }

    /// Returns the content of a metadata-only copy, which is in the lower snapshot.
    fn metacopy(
        &mut self,
        mount: usize,
        mounted: &Mounted,
        size: u64,
        below: Option<(InodeIdx, FileKind)>,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<Content, CaptureError> {
        let damaged = |what| CaptureError::Overlay { path: path(), what };
        let Some((inode, FileKind::Regular)) = below else {
            return Err(damaged("the file that holds its contents is not in the snapshot below"));
        };
        let lower = mounted.view.lower.as_ref().ok_or_else(|| damaged("no snapshot below"))?;
        let attr = lower.index.attr(inode).map_err(mounted.wrong_index())?;
        if attr.size != size {
            return Err(damaged("it has another size than the file that holds its contents"));
        }
        self.adopt_lower(mount, mounted, inode)
    }

    fn upper_content(
        &mut self,
        entry: &Entry,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<Content, CaptureError> {
        if let Some((stamp, content)) = self.parts.packed.get(&entry.stat.id)
            && *stamp == entry.stat.stamp
        {
            return Ok(content.clone());
        }
        if let (Some(inode), Some(last)) = (entry.known, &mut self.parts.earlier.last) {
            return self.parts.packer.adopt(last, inode).map_err(|error| match error {
                AdoptError::Format(source) => {
                    CaptureError::Io { path: path(), source: std::io::Error::other(source) }
                }
                AdoptError::Pack(source) => source.into(),
            });
        }
        Err(CaptureError::Changed { path: path(), what: "was written to" })
    }

    /// Returns the properties of an upper object beyond `stat`: just read, or from the last
    /// snapshot.
    fn extra(&self, entry: &Entry) -> Result<Option<Extra>, CaptureError> {
        let (Some(inode), Some(last)) = (entry.known, &self.parts.earlier.last) else {
            return Ok(entry.extra.as_deref().cloned());
        };
        let index = last.index();
        let read = || -> Result<Extra, inlay_store::format::FormatError> {
            let mut extra = Extra::default();
            for attribute in index.xattrs(inode)?.iter() {
                let (name, value) = attribute?;
                extra.xattrs.push((name.into(), value.into()));
            }
            if index.attr(inode)?.kind == FileKind::Symlink {
                extra.target = Some(index.symlink(inode)?.into());
            }
            Ok(extra)
        };
        read().map(Some).map_err(|source| CaptureError::Io {
            path: PathBuf::new(),
            source: std::io::Error::other(source),
        })
    }

    /// Builds a mount point whose mount is left out.
    fn emptied(&self, object: &Object<'_>) -> Result<(Meta, NodeKind), CaptureError> {
        let meta = match object.source {
            Source::Lower(inode) => lower_meta(self.mounted(object.mount)?, inode)?,
            Source::Upper { entry, .. } => upper_meta(&entry.stat, self.extra(entry)?.as_ref()),
            Source::Root => self.root_meta(object.mount)?,
        };
        let kind = match object.kind {
            FileKind::Directory => NodeKind::Directory,
            _ => NodeKind::Regular { size: 0, content: Content::Hole },
        };
        Ok((meta, kind))
    }

    /// Returns the node of the same inode if another of its links is in the tree already.
    fn linked(&self, object: &Object<'_>) -> Option<NodeId> {
        match object.source {
            _ if object.kind == FileKind::Directory || object.emptied => None,
            Source::Upper { entry, .. } if entry.stat.nlink > 1 => {
                self.upper_links.get(&entry.stat.id).copied()
            }
            Source::Lower(inode) => self.lower_links.get(&(object.mount, inode)).copied(),
            _ => None,
        }
    }

    /// Reports whether the timestamps of an object will reveal any later change.
    fn lasts(&self, mount: usize, name: &[u8], entry: &Entry) -> bool {
        let metacopy = entry.extra.as_ref().is_some_and(|extra| extra.metacopy);
        let upper = self.parts.picture.mounts.get(mount).and_then(|mounted| mounted.upper.as_ref());
        !metacopy
            && !self.parts.mapped.may_be(name, &entry.stat)
            && upper.is_some_and(|upper| upper.scan.begun.settled(entry.stat.stamp.ctime))
    }

    fn remember(
        &mut self,
        object: &Object<'_>,
        name: &[u8],
        node: NodeId,
    ) -> Result<(), CaptureError> {
        if object.kind == FileKind::Directory || object.emptied {
            return Ok(());
        }
        match object.source {
            Source::Upper { entry, .. } => {
                if entry.stat.nlink > 1 {
                    self.upper_links.insert(entry.stat.id, node);
                }
                if self.lasts(object.mount, name, entry) {
                    let (id, stamp) = (entry.stat.id, entry.stat.stamp);
                    self.built.taken.push(Taken { id, stamp, node });
                }
            }
            Source::Lower(inode) => {
                let mounted = self.mounted(object.mount)?;
                let Some(lower) = &mounted.view.lower else { return Ok(()) };
                if lower.index.attr(inode).map_err(mounted.wrong_index())?.nlink > 1 {
                    self.lower_links.insert((object.mount, inode), node);
                }
            }
            Source::Root => {}
        }
        Ok(())
    }
}

impl Visitor for Builder<'_> {
    type Dir = NodeId;

    fn take(
        &mut self,
        parent: NodeId,
        name: &[u8],
        object: &Object<'_>,
        here: &Here<'_>,
    ) -> Result<Option<NodeId>, CaptureError> {
        self.built.entries += 1;
        self.parts.progress.advance(1, 0);
        let failed = |source: TreeError| CaptureError::Tree { path: here.path(name), source };
        if let Some(node) = self.linked(object) {
            self.built.tree.link(parent, name, node).map_err(failed)?;
            return Ok(Some(node));
        }
        let path = || here.path(name);
        let (meta, kind) = match object.source {
            _ if object.emptied => self.emptied(object)?,
            Source::Lower(inode) => self.lower_node(object, inode)?,
            Source::Upper { entry, below, .. } => self.upper_node(object, entry, below, &path)?,
            Source::Root => (self.root_meta(object.mount)?, NodeKind::Directory),
        };
        let node = self.built.tree.insert(parent, name, meta, kind).map_err(failed)?;
        self.remember(object, name, node)?;
        Ok(Some(node))
    }

    fn excluded(&mut self, path: PathBuf, pattern: &str) {
        if self.built.left_out.len() >= EXCLUDED_MAX {
            self.built.left_out_more += 1;
            return;
        }
        let why = LeftOutWhy::Excluded(pattern.to_owned());
        self.built.left_out.push(LeftOut { path, why, underneath: Underneath::Empty });
    }
}

fn upper_meta(stat: &Stat, extra: Option<&Extra>) -> Meta {
    Meta {
        perm: stat.perm(),
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.stamp.mtime,
        xattrs: extra.map(|extra| extra.xattrs.clone()).unwrap_or_default(),
    }
}

fn lower_meta(mounted: &Mounted, inode: InodeIdx) -> Result<Meta, CaptureError> {
    let Some(lower) = &mounted.view.lower else { return Ok(Meta::default()) };
    let wrong = mounted.wrong_index();
    let attr = lower.index.attr(inode).map_err(&wrong)?;
    let mut xattrs: Vec<Xattr> = Vec::new();
    for attribute in lower.index.xattrs(inode).map_err(&wrong)?.iter() {
        let (name, value) = attribute.map_err(&wrong)?;
        // Without an overlay above it, no attribute is hidden.
        if mounted.view.upper.is_none() {
            xattrs.push((name.into(), value.into()));
        } else if let Some(name) = visible_xattr(name) {
            xattrs.push((name.into(), value.into()));
        }
    }
    let mut meta =
        Meta { perm: attr.perm, uid: attr.uid, gid: attr.gid, mtime: attr.mtime, xattrs };
    if let Some(owners) = &mounted.view.owners {
        owned::map(&mut meta, owners);
    }
    Ok(meta)
}
