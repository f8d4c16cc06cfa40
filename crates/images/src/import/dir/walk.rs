//! Walks a directory depth first, in the order of names.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use inlay_store::format::FileKind;
use inlay_store::pack::FileSink;
use inlay_store::tree::{NodeId, NodeKind, Tree, TreeError};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, openat};

use super::content::{RangeReader, ReadFailure, data_ranges};
use super::object::{InodeId, MountId, ObjectFailure, OpenObject, XattrBuffers, step};
use crate::import::{ImportError, ImportOptions, Mounts, Progress};

/// Maximum directories on the path that stay open; those above are reopened through `..`.
const OPEN_MAX: usize = 32;
const LIST_BUFFER: usize = 64 << 10;

/// A name in a directory, with its type according to the listing.
type Listed = (CString, FileType);

/// A directory on the current path.
struct Level {
    fd: Option<OwnedFd>,
    id: InodeId,
    mount: MountId,
    node: NodeId,
    /// Remaining names, in reverse order.
    names: Vec<Listed>,
    /// Length of the parent directory's path.
    parent_len: usize,
}

/// Returns the identity of the directory at `path`; `None` if there is none.
fn id_of(path: &Path) -> Option<InodeId> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags, Mode::empty()).ok()?;
    OpenObject::of_dir(fd).ok().map(|object| object.id())
}

/// A walk through a directory.
pub(super) struct DirWalk<'a> {
    tree: Tree,
    levels: Vec<Level>,
    /// Inodes with several names.
    linked: HashMap<InodeId, NodeId>,
    mounts: Mounts,
    left_empty: HashSet<InodeId>,
    entries_max: usize,
    /// For messages: the directory's path as given, and the current path below it.
    root: PathBuf,
    path: Vec<u8>,
    buffers: XattrBuffers,
    list: Box<[MaybeUninit<u8>]>,
    sink: &'a mut dyn FileSink,
    progress: &'a dyn Progress,
}

impl<'a> DirWalk<'a> {
    pub(super) fn new(
        root: &Path,
        options: &ImportOptions,
        sink: &'a mut dyn FileSink,
        progress: &'a dyn Progress,
    ) -> Result<Self, ImportError> {
        let mut walk = Self {
            tree: Tree::new(options.tree),
            levels: Vec::new(),
            linked: HashMap::new(),
            mounts: options.mounts,
            left_empty: options.left_empty.iter().filter_map(|dir| id_of(dir)).collect(),
            entries_max: usize::try_from(options.tree.entries).unwrap_or(usize::MAX),
            root: root.to_owned(),
            path: Vec::new(),
            buffers: XattrBuffers::new(),
            list: vec![MaybeUninit::uninit(); LIST_BUFFER].into(),
            sink,
            progress,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, root, flags, Mode::empty());
        let opened = opened.map_err(|error| ObjectFailure::System("open", error));
        let object = opened.and_then(OpenObject::of_dir).map_err(|error| walk.failed(error))?;
        let meta = object.meta(&mut walk.buffers).map_err(|error| walk.failed(error))?;
        walk.tree.set_meta(NodeId::ROOT, meta).map_err(|error| walk.no_tree(error))?;
        walk.descend(object, NodeId::ROOT, 0)?;
        Ok(walk)
    }

    pub(super) fn run(mut self) -> Result<Tree, ImportError> {
        while let Some(level) = self.levels.last_mut() {
            let Some((name, listed)) = level.names.pop() else {
                self.ascend()?;
                continue;
            };
            let parent_len = self.path.len();
            if parent_len > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            if !self.take(&name, listed, parent_len)? {
                self.path.truncate(parent_len);
            }
        }
        Ok(self.tree)
    }

    /// Imports `name` of the current directory. Returns true if it is a directory that the walk has
    /// now entered.
    fn take(
        &mut self,
        name: &CString,
        listed: FileType,
        parent_len: usize,
    ) -> Result<bool, ImportError> {
        let Some(Level { fd: Some(fd), mount, node: dir, .. }) = self.levels.last() else {
            return Ok(false);
        };
        let (mount, dir) = (*mount, *dir);
        let object = OpenObject::open(fd, name, listed).map_err(|error| self.failed(error))?;
        let mounted = object.mount() != mount && self.mounts == Mounts::Skip;
        let is_dir = object.kind == FileKind::Directory;
        if mounted && !is_dir {
            return Ok(false);
        }
        let linked = !is_dir && object.names() > 1;
        if linked && let Some(&node) = self.linked.get(&object.id()) {
            let link = self.tree.link(dir, name.to_bytes(), node);
            link.map_err(|error| self.no_tree(error))?;
            self.progress.advance(1, 0);
            return Ok(false);
        }
        let meta = object.meta(&mut self.buffers).map_err(|error| self.failed(error))?;
        let kind = object.node_kind().map_err(|error| self.failed(error))?;
        let kind = if let Some(kind) = kind {
            self.progress.advance(1, 0);
            kind
        } else {
            self.regular(&object)?
        };
        let node = self.tree.insert(dir, name.to_bytes(), meta, kind);
        let node = node.map_err(|error| self.no_tree(error))?;
        if linked {
            self.linked.insert(object.id(), node);
        }
        if is_dir && !mounted && !self.left_empty.contains(&object.id()) {
            self.descend(object, node, parent_len)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn regular(&mut self, object: &OpenObject) -> Result<NodeKind, ImportError> {
        let size = object.size();
        // The block count proves nothing: it includes attribute blocks and preallocation.
        let ranges = data_ranges(&object.fd, size);
        let ranges = ranges.map_err(|e| self.failed(ObjectFailure::System("find holes", e)))?;
        // A concurrent truncation looks like a hole.
        let is_whole = matches!(&ranges[..], [range] if *range == (0..size));
        if !is_whole && object.size_now().map_err(|error| self.failed(error))? < size {
            return Err(self.failed(ObjectFailure::Changed("became shorter")));
        }
        let mut reader = RangeReader::new(object.fd.as_fd(), &ranges);
        let packed = self.sink.add_file(size, &ranges, &mut reader);
        let content = packed.map_err(|source| match reader.failure() {
            Some(ReadFailure::Shrunk) => self.failed(ObjectFailure::Changed("became shorter")),
            Some(ReadFailure::System(error)) => self.failed(ObjectFailure::System("read", error)),
            None => ImportError::Pack { path: self.path.as_slice().into(), source },
        })?;
        self.progress.advance(1, ranges.iter().map(|range| range.end - range.start).sum());
        Ok(NodeKind::Regular { size, content })
    }

    fn descend(
        &mut self,
        object: OpenObject,
        node: NodeId,
        parent_len: usize,
    ) -> Result<(), ImportError> {
        let names = self.list(&object)?;
        let (id, mount) = (object.id(), object.mount());
        self.levels.push(Level { fd: Some(object.fd), id, mount, node, names, parent_len });
        let far = self.levels.len().checked_sub(OPEN_MAX + 1);
        if let Some(level) = far.and_then(|far| self.levels.get_mut(far)) {
            level.fd = None;
        }
        Ok(())
    }

    fn ascend(&mut self) -> Result<(), ImportError> {
        let Some(Level { fd, parent_len, .. }) = self.levels.pop() else { return Ok(()) };
        self.path.truncate(parent_len);
        let parent = self.levels.last().filter(|parent| parent.fd.is_none()).map(|p| p.id);
        if let (Some(wanted), Some(fd)) = (parent, fd) {
            let object = OpenObject::open_parent(fd).map_err(|error| self.failed(error))?;
            if object.id() != wanted {
                return Err(self.failed(ObjectFailure::Changed("was moved")));
            }
            if let Some(level) = self.levels.last_mut() {
                level.fd = Some(object.fd);
            }
        }
        Ok(())
    }

    /// Lists the names in a directory, in reverse order.
    fn list(&mut self, dir: &OpenObject) -> Result<Vec<Listed>, ImportError> {
        let mut names = Vec::new();
        let mut failure = None;
        let mut reader = RawDir::new(&dir.fd, &mut self.list);
        while let Some(entry) = reader.next() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) if names.len() < self.entries_max => {
                    names.push((entry.file_name().to_owned(), entry.file_type()));
                }
                Ok(_) => {
                    let limit = self.entries_max as u64;
                    return Err(self.no_tree(TreeError::Limit { what: "entries", limit }));
                }
                Err(error) => {
                    failure = Some(step("list")(error));
                    break;
                }
            }
        }
        if let Some(failure) = failure {
            return Err(self.failed(failure));
        }
        names.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        Ok(names)
    }

    /// Current position as a path for messages.
    fn here(&self) -> PathBuf {
        if self.path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(OsStr::from_bytes(&self.path))
        }
    }

    fn failed(&self, failure: ObjectFailure) -> ImportError {
        let path = self.here();
        match failure {
            ObjectFailure::System(what, error) => {
                ImportError::Read { path, what, source: error.into() }
            }
            ObjectFailure::Changed(what) => ImportError::Changed { path, what },
        }
    }

    fn no_tree(&self, source: TreeError) -> ImportError {
        ImportError::Tree { path: self.path.as_slice().into(), source }
    }
}
