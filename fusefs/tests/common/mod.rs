//! Snapshots for tests: an index of a real directory, and sources that serve its files.
#![allow(dead_code)] // each test program uses some of it

pub(crate) mod roles;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use inlay_fusefs::{ContentError, ContentSource, ReadDone, ReadNow, SnapshotFs, WholeFile};
use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::format::{Device, FileKind, Index, InodeIdx, Timestamp};
use inlay_store::ids::{BlobId, Digest, Kind};
use inlay_store::pack::{BlobStore, FileSink, KnownChunks, PackError, PackOptions, Packer};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use inlay_testkit::{attributes, compare::data_ranges};

/// The original file of each regular inode.
pub(crate) type Files = HashMap<InodeIdx, PathBuf>;

/// An index, and the original file of each of its regular inodes.
pub(crate) struct Snapshot {
    pub(crate) index: Index,
    pub(crate) files: Files,
}

struct Nowhere;

impl BlobStore for Nowhere {
    fn put(&mut self, _: BlobId, _: Vec<u8>) -> Result<(), PackError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

impl Snapshot {
    /// Creates a snapshot of the tree below `root`.
    pub(crate) fn of(root: &Path) -> Self {
        let mut packer = packer();
        let mut tree = Tree::new(TreeLimits::default());
        tree.set_meta(NodeId::ROOT, meta(root)).unwrap();
        add(&mut tree, &mut packer, &mut HashMap::new(), NodeId::ROOT, root);
        Self::written(&tree, packer, root)
    }

    /// Creates a snapshot of `tree`, with file contents from below `root`.
    pub(crate) fn written(tree: &Tree, packer: Packer, root: &Path) -> Self {
        let groups = packer.finish().unwrap();
        let mut bytes = Vec::new();
        let parts = IndexParts { kind: Kind::Filesystem, tree, groups: &groups, config: b"" };
        write_index(parts, &mut bytes).unwrap();
        let index = Index::from_bytes(bytes).unwrap();
        let files = files_of(&index, root);
        Self { index, files }
    }

    /// Serves it from `source` in this process, with its own keeper.
    pub(crate) fn mount(&self, source: Arc<dyn ContentSource>) -> roles::Mounted {
        roles::Mounted::new(SnapshotFs::new(self.index.clone(), source))
    }

    /// Returns a source that has every byte cached.
    pub(crate) fn at_hand(&self) -> Arc<dyn ContentSource> {
        Arc::new(AtHand(self.files.clone()))
    }
}

pub(crate) fn packer() -> Packer {
    Packer::new(PackOptions::default(), KnownChunks::new(), Box::new(Nowhere)).unwrap()
}

pub(crate) fn meta(path: &Path) -> Meta {
    let stat = fs::symlink_metadata(path).unwrap();
    Meta {
        perm: (stat.mode() & 0o7777) as u16,
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: Timestamp { secs: stat.mtime(), nanos: u32::try_from(stat.mtime_nsec()).unwrap() },
        xattrs: attributes::read(path)
            .unwrap()
            .into_iter()
            .map(|(name, value)| (name.as_bytes().into(), value.into()))
            .collect(),
    }
}

fn add(
    tree: &mut Tree,
    packer: &mut Packer,
    links: &mut HashMap<u64, NodeId>,
    dir: NodeId,
    at: &Path,
) {
    for entry in fs::read_dir(at).unwrap() {
        let (path, name) = {
            let entry = entry.unwrap();
            (entry.path(), entry.file_name())
        };
        let stat = fs::symlink_metadata(&path).unwrap();
        if let Some(first) = links.get(&stat.ino()) {
            tree.link(dir, name.as_bytes(), *first).unwrap();
            continue;
        }
        let kind = FileKind::from_mode(stat.mode()).unwrap();
        let device =
            Device { major: rustix::fs::major(stat.rdev()), minor: rustix::fs::minor(stat.rdev()) };
        let node = match kind {
            FileKind::Regular => regular(packer, &path, stat.len()),
            FileKind::Directory => NodeKind::Directory,
            FileKind::Symlink => {
                NodeKind::Symlink(fs::read_link(&path).unwrap().as_os_str().as_bytes().into())
            }
            FileKind::CharDevice => NodeKind::CharDevice(device),
            FileKind::BlockDevice => NodeKind::BlockDevice(device),
            FileKind::Fifo => NodeKind::Fifo,
            FileKind::Socket => NodeKind::Socket,
        };
        let node = tree.insert(dir, name.as_bytes(), meta(&path), node).unwrap();
        if kind == FileKind::Directory {
            add(tree, packer, links, node, &path);
        } else if stat.nlink() > 1 {
            links.insert(stat.ino(), node);
        }
    }
}

fn regular(packer: &mut Packer, path: &Path, size: u64) -> NodeKind {
    let file = File::open(path).unwrap();
    let ranges: Vec<_> =
        data_ranges(&file, size).unwrap().into_iter().map(|(start, end)| start..end).collect();
    let mut data = Vec::new();
    for range in &ranges {
        let mut piece = vec![0; usize::try_from(range.end - range.start).unwrap()];
        file.read_exact_at(&mut piece, range.start).unwrap();
        data.extend_from_slice(&piece);
    }
    let content = packer.add_file(size, &ranges, &mut data.as_slice()).unwrap();
    NodeKind::Regular { size, content }
}

/// Returns the original file below `root` of each regular inode of `index`.
pub(crate) fn files_of(index: &Index, root: &Path) -> Files {
    let mut files = HashMap::new();
    locate(index, InodeIdx::ROOT, root, &mut files);
    files
}

fn locate(index: &Index, dir: InodeIdx, at: &Path, files: &mut Files) {
    for entry in index.dir(dir).unwrap().iter() {
        let entry = entry.unwrap();
        let path = at.join(std::ffi::OsStr::from_bytes(entry.name));
        match entry.kind {
            FileKind::Directory => locate(index, entry.inode, &path, files),
            FileKind::Regular => drop(files.insert(entry.inode, path)),
            _ => {}
        }
    }
}

fn read(files: &Files, inode: InodeIdx, offset: u64, buf: &mut [u8]) {
    File::open(&files[&inode]).unwrap().read_exact_at(buf, offset).unwrap();
}

/// Has every byte cached.
pub(crate) struct AtHand(pub(crate) Files);

impl ContentSource for AtHand {
    fn read_now(
        &self,
        inode: InodeIdx,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<ReadNow, ContentError> {
        read(&self.0, inode, offset, buf);
        Ok(ReadNow::Filled)
    }

    fn read_later(&self, _: InodeIdx, _: u64, _: u32, _: ReadDone) {
        panic!("everything is at hand");
    }
}

/// Has every byte cached, with the original file as the cache file of every large file.
pub(crate) struct Whole {
    files: Files,
    contents: HashMap<InodeIdx, Digest>,
}

impl Whole {
    pub(crate) fn new(files: Files, index: &Index) -> Self {
        let contents = files
            .keys()
            .filter_map(|inode| Some((*inode, index.content(*inode).unwrap()?)))
            .collect();
        Self { files, contents }
    }
}

impl ContentSource for Whole {
    fn read_now(
        &self,
        inode: InodeIdx,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<ReadNow, ContentError> {
        read(&self.files, inode, offset, buf);
        Ok(ReadNow::Filled)
    }

    fn read_later(&self, _: InodeIdx, _: u64, _: u32, _: ReadDone) {
        panic!("everything is at hand");
    }

    fn whole(&self, inode: InodeIdx) -> Option<WholeFile> {
        let content = *self.contents.get(&inode)?;
        let file = Arc::new(File::open(&self.files[&inode]).unwrap());
        Some(WholeFile { file, content, guard: Box::new(()) })
    }
}

/// Fails every read.
pub(crate) struct Failing;

impl ContentSource for Failing {
    fn read_now(&self, _: InodeIdx, _: u64, _: &mut [u8]) -> Result<ReadNow, ContentError> {
        Err(ContentError::Shutdown)
    }

    fn read_later(&self, _: InodeIdx, _: u64, _: u32, done: ReadDone) {
        done(Err(ContentError::Shutdown));
    }
}

/// Panics on every read.
pub(crate) struct Panics;

impl ContentSource for Panics {
    fn read_now(&self, _: InodeIdx, _: u64, _: &mut [u8]) -> Result<ReadNow, ContentError> {
        panic!("a defect")
    }

    fn read_later(&self, _: InodeIdx, _: u64, _: u32, _: ReadDone) {}
}

/// Has nothing cached: reads wait until the test releases them.
#[derive(Default)]
pub(crate) struct Delayed {
    files: Files,
    waiting: Mutex<Vec<(InodeIdx, u64, u32, ReadDone)>>,
    arrived: Condvar,
}

impl Delayed {
    pub(crate) fn new(snapshot: &Snapshot) -> Arc<Self> {
        Arc::new(Self { files: snapshot.files.clone(), ..Self::default() })
    }

    /// Blocks until `count` reads wait.
    pub(crate) fn until_waiting(&self, count: usize) {
        let waiting = self.waiting.lock().unwrap();
        drop(self.arrived.wait_while(waiting, |waiting| waiting.len() < count).unwrap());
    }

    /// Answers all waiting reads.
    pub(crate) fn answer(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        for (inode, offset, len, done) in waiting {
            let mut bytes = vec![0; len as usize];
            read(&self.files, inode, offset, &mut bytes);
            done(Ok(Bytes::from(bytes)));
        }
    }

    /// Fails all waiting reads.
    pub(crate) fn fail(&self, error: &ContentError) {
        for (.., done) in std::mem::take(&mut *self.waiting.lock().unwrap()) {
            done(Err(error.clone()));
        }
    }

    /// Drops all waiting reads without an answer.
    pub(crate) fn forget(&self) {
        self.waiting.lock().unwrap().clear();
    }
}

impl ContentSource for Delayed {
    fn read_now(&self, _: InodeIdx, _: u64, _: &mut [u8]) -> Result<ReadNow, ContentError> {
        Ok(ReadNow::WouldWait)
    }

    fn read_later(&self, inode: InodeIdx, offset: u64, len: u32, done: ReadDone) {
        self.waiting.lock().unwrap().push((inode, offset, len, done));
        self.arrived.notify_all();
    }
}

/// A directory to mount on, next to the tree that the snapshot is made of.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = inlay_testkit::scratch().unwrap();
        for name in ["tree", "mnt", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    /// Creates a directory next to the others.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}
