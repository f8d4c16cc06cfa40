//! Walks the merged tree that the overlays show, computed from the picture of their layers.
//!
//! Depth first, each directory in the order of its names, without recursion. Termination is ensured
//! only by the limits of the tree built from it: an index may contain cycles, and redirects may
//! show a directory of the snapshot at several places.

use std::path::PathBuf;

use inlay_store::format::{DirEntry, FileKind, FormatError, InodeIdx};

use super::error::CaptureError;
use super::exclude::Exclude;
use super::merged_view::{Mounted, Picture};
use super::mount_points::{MountPointContent, Point};
use super::paths::{DEPTH_MAX, PathId, Paths, join};
use super::scan::{DirIdx, DirScan, Entry};

/// The origin of an object of the merged tree.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// The lower snapshot.
    Lower(InodeIdx),
    /// The upper directory.
    Upper {
        dir: &'a DirScan,
        entry: &'a Entry,
        /// The lower object that it hides or takes its content from.
        below: Option<(InodeIdx, FileKind)>,
    },
    /// The root directory of a mount.
    Root,
}

/// An object of the merged tree.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    /// The number of its mount in the picture.
    pub(super) mount: usize,
    pub(super) source: Source<'a>,
    pub(super) kind: FileKind,
    /// A mount on it is left out, so only the empty mount point is taken.
    pub(super) emptied: bool,
}

/// Whether to visit unchanged objects, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// Skip objects that are only in the lower snapshots.
    Changes,
}

/// Receives the objects of a merged tree.
pub(super) trait Visitor {
    /// Its handle of a directory.
    type Dir: Copy;

    /// Takes an object. `None` skips its content; the result for an object other than a directory
    /// is ignored.
    fn take(
        &mut self,
        parent: Self::Dir,
        name: &[u8],
        object: &Object<'_>,
        here: &Here<'_>,
    ) -> Result<Option<Self::Dir>, CaptureError>;

    /// Called for each path excluded by a pattern.
    fn excluded(&mut self, path: PathBuf, pattern: &str) {
        let _ = (path, pattern);
    }
}

/// Builds the path of the visited object on demand.
pub(super) struct Here<'a> {
    paths: &'a Paths,
    dir: PathId,
}

impl Here<'_> {
    /// Returns the path of `name`, relative to the captured directory.
    pub(super) fn path(&self, name: &[u8]) -> PathBuf {
        self.paths.path(self.dir, name)
    }
}

/// A directory still to visit.
struct Level<'a, D> {
    token: D,
    mount: usize,
    upper: Option<&'a DirScan>,
    lower: Option<InodeIdx>,
    point: Option<&'a Point>,
    path: PathId,
}

/// A walk in progress.
struct Walk<'a, V: Visitor> {
    picture: &'a Picture,
    exclude: &'a Exclude,
    wanted: Wanted,
    visitor: &'a mut V,
    paths: Paths,
    stack: Vec<Level<'a, V::Dir>>,
    below: Vec<Level<'a, V::Dir>>,
}

/// Walks everything that `picture` shows; `root` is the visitor's handle of the captured directory.
pub(super) fn walk<V: Visitor>(
    picture: &Picture,
    exclude: &Exclude,
    wanted: Wanted,
    root: V::Dir,
    visitor: &mut V,
) -> Result<(), CaptureError> {
    let mut walk = Walk {
        picture,
        exclude,
        wanted,
        visitor,
        paths: Paths::new(),
        stack: Vec::new(),
        below: Vec::new(),
    };
    let root = walk.root(0, root, Some(&picture.points), Paths::ROOT);
    walk.stack.extend(root);
    while let Some(level) = walk.stack.pop() {
        walk.directory(&level)?;
        while let Some(below) = walk.below.pop() {
            walk.stack.push(below);
        }
    }
    Ok(())
}

impl<'a, V: Visitor> Walk<'a, V> {
    fn mounted(&self, mount: usize) -> Option<&'a Mounted> {
        self.picture.mounts.get(mount)
    }

    /// Returns the root directory of a mount.
    fn root(
        &self,
        mount: usize,
        token: V::Dir,
        point: Option<&'a Point>,
        path: PathId,
    ) -> Option<Level<'a, V::Dir>> {
        let mounted = self.mounted(mount)?;
        let upper = mounted.upper.as_ref().and_then(|upper| upper.scan.dir(DirIdx::ROOT));
        Some(Level { token, mount, upper, lower: mounted.lower, point, path })
    }

    fn directory(&mut self, level: &Level<'a, V::Dir>) -> Result<(), CaptureError> {
        let Some(mounted) = self.mounted(level.mount) else { return Ok(()) };
        let wrong = mounted.wrong_index();
        let uppers: &[Entry] = level.upper.map_or(&[], |dir| &dir.entries);
        let mut uppers = uppers.iter().peekable();
        let lowers = match (&mounted.view.lower, level.lower) {
            (Some(lower), Some(inode)) => Some(lower.index.dir(inode).map_err(&wrong)?),
            _ => None,
        };
        let mut last: &[u8] = b"";
        for place in 0..lowers.map_or(0, |dir| dir.len()) {
            let Some(entry) = lowers.and_then(|dir| dir.get(place)) else { break };
            let entry = entry.map_err(&wrong)?;
            if entry.name <= last {
                return Err(wrong(FormatError::corrupt("names out of order", entry.inode.0)));
            }
            last = entry.name;
            let mut hidden = false;
            while let (Some(dir), Some(upper)) = (level.upper, uppers.peek().copied()) {
                let name = dir.name(upper);
                if name > entry.name {
                    break;
                }
                hidden = name == entry.name;
                uppers.next();
                self.upper(level, mounted, dir, upper)?;
            }
            if !hidden {
                self.lower(level, mounted, &entry)?;
            }
        }
        if let Some(dir) = level.upper {
            for upper in uppers {
                self.upper(level, mounted, dir, upper)?;
            }
        }
        Ok(())
    }

    fn upper(
        &mut self,
        level: &Level<'a, V::Dir>,
        mounted: &'a Mounted,
        dir: &'a DirScan,
        entry: &'a Entry,
    ) -> Result<(), CaptureError> {
        if entry.is_whiteout() {
            return Ok(());
        }
        let name = dir.name(entry);
        let Some(kind) = entry.stat.kind() else {
            let path = self.paths.path(level.path, name);
            return Err(CaptureError::Overlay { path, what: "an object of no known type" });
        };
        let extra = entry.extra.as_deref();
        // Other files hide the lower object regardless of its kind.
        let looks = kind == FileKind::Directory || extra.is_some_and(|extra| extra.metacopy);
        let below = if looks {
            let at = || self.paths.path(level.path, name);
            // Build the path only for an error message.
            match mounted.below(level.lower, name, extra, &mounted.at) {
                Err(CaptureError::Overlay { what, .. }) => {
                    return Err(CaptureError::Overlay { path: at(), what });
                }
                other => other?,
            }
        } else {
            None
        };
        let source = Source::Upper { dir, entry, below };
        let object = Object { mount: level.mount, source, kind, emptied: false };
        let upper = mounted.upper.as_ref().and_then(|upper| upper.scan.dir(entry.dir));
        let lower = below.filter(|(_, kind)| *kind == FileKind::Directory).map(|(inode, _)| inode);
        self.object(level, name, object, upper, lower)
    }

    fn lower(
        &mut self,
        level: &Level<'a, V::Dir>,
        mounted: &'a Mounted,
        entry: &DirEntry<'a>,
    ) -> Result<(), CaptureError> {
        let point = level.point.and_then(|point| point.child(entry.name));
        if self.wanted == Wanted::Changes && point.is_none() {
            return Ok(());
        }
        let kind = entry.kind;
        if mounted.hides(entry.inode, kind).map_err(mounted.wrong_index())? {
            return Ok(());
        }
        let source = Source::Lower(entry.inode);
        let object = Object { mount: level.mount, source, kind, emptied: false };
        let lower = (kind == FileKind::Directory).then_some(entry.inode);
        self.object(level, entry.name, object, None, lower)
    }

    /// Passes an object to the visitor, and queues it if it is a directory.
    fn object(
        &mut self,
        level: &Level<'a, V::Dir>,
        name: &[u8],
        mut object: Object<'a>,
        upper: Option<&'a DirScan>,
        lower: Option<InodeIdx>,
    ) -> Result<(), CaptureError> {
        let is_dir = object.kind == FileKind::Directory;
        if !self.exclude.is_empty() {
            let mut path = Vec::new();
            self.paths.compose(level.path, &mut path);
            join(&mut path, name);
            if let Some(pattern) = self.exclude.pattern(&path, is_dir) {
                self.visitor.excluded(self.paths.path(level.path, name), pattern);
                return Ok(());
            }
        }
        let point = level.point.and_then(|point| point.child(name));
        let mut graft = None;
        match point.and_then(|point| point.place) {
            None => {}
            Some(MountPointContent::Empty) => object.emptied = true,
            Some(MountPointContent::Graft(number)) => {
                graft = Some(number + 1);
                let source = Source::Root;
                let kind = FileKind::Directory;
                object = Object { mount: number + 1, source, kind, emptied: false };
            }
        }
        let here = Here { paths: &self.paths, dir: level.path };
        let Some(token) = self.visitor.take(level.token, name, &object, &here)? else {
            return Ok(());
        };
        if object.kind != FileKind::Directory || object.emptied {
            return Ok(());
        }
        let Some(path) = self.paths.push(level.path, name) else {
            let what = self.paths.path(level.path, b"").display().to_string();
            let (of, limit) = ("levels of directories", DEPTH_MAX.into());
            return Err(CaptureError::Limit { what, of, limit });
        };
        let next = match graft {
            Some(mount) => self.root(mount, token, point, path),
            None => Some(Level { token, mount: level.mount, upper, lower, point, path }),
        };
        self.below.extend(next);
        Ok(())
    }
}
