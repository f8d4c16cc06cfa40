//! A store, overlays as the daemon creates them, and listings of snapshots.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use inlay_images::import::{ImportOptions, NoProgress, Source};
use inlay_mounts::testing::overlay;
use inlay_snapshots::host::Host;
use inlay_snapshots::state::State;
use inlay_snapshots::{CreateOptions, Parent, create, open_index};
use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{Attr, FileData, Index, InodeIdx};
use inlay_store::group::decode_group;
use inlay_store::ids::{Digest, Kind, SnapshotId};
use inlay_store::pack::PackOptions;
use inlay_store::remote::{Existing, ObjectKey, StoreConfig};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use tempfile::TempDir;

use crate::*;

/// An object in a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) attr: Attr,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) target: Vec<u8>,
    pub(super) contents: Option<Digest>,
    pub(super) data: Vec<Range<u64>>,
    pub(super) first_name: Vec<u8>,
}

/// A complete snapshot: all objects by path; the root's path is empty.
pub(super) type Listing = BTreeMap<Vec<u8>, Seen>;

/// A state directory with a store.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) host: Host,
    groups: RefCell<HashMap<Digest, Rc<Vec<u8>>>>,
}

impl World {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = {
            let state = State::open(&dir.path().join("state")).unwrap();
            let store = StoreConfig::new(state.store_url(None));
            Host::open(state, &store).unwrap()
        };
        Self { dir, host, groups: RefCell::default() }
    }

    /// Imports a directory as a snapshot.
    pub(super) fn import(&self, path: &Path, kind: Kind) -> Lower {
        let options = CreateOptions {
            kind,
            name: None,
            parent: Parent::None,
            dedup: Vec::new(),
            labels: BTreeMap::new(),
            import: ImportOptions::default(),
            pack: PackOptions::default(),
            existing: Existing::default(),
        };
        let source = Source::Dir(path.to_owned());
        let id = create(&self.host, &source, &options, &NoProgress).unwrap().record.id;
        self.lower(id)
    }

    pub(super) fn lower(&self, id: SnapshotId) -> Lower {
        let index = self.host.wait(open_index(self.host.remote(), self.host.state(), id));
        Lower { id, index: index.unwrap() }
    }

    pub(super) fn capture(&self, subject: &dyn Subject) -> Result<Captured, CaptureError> {
        self.capture_with(subject, &self.options())
    }

    pub(super) fn options(&self) -> CaptureOptions {
        CaptureOptions {
            seen_dir: Some(self.dir.path().join("seen")),
            ..CaptureOptions::new(Kind::Directory, "test")
        }
    }

    pub(super) fn capture_with(
        &self,
        subject: &dyn Subject,
        options: &CaptureOptions,
    ) -> Result<Captured, CaptureError> {
        capture(self.host.site(), subject, options, &NoProgress)
    }

    pub(super) fn seen_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("seen")).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        // The last record is kept beside each of them.
        files.filter(|path| path.extension().is_some_and(|name| name == "seen")).collect()
    }

    /// Returns the number of blobs in the store.
    pub(super) fn blobs(&self) -> usize {
        let blobs = self.host.state().embedded_store().join("blobs");
        let Ok(parts) = fs::read_dir(blobs) else { return 0 };
        parts.map(|part| fs::read_dir(part.unwrap().path()).unwrap().count()).sum()
    }

    pub(super) fn list(&self, id: SnapshotId) -> Listing {
        self.list_index(&self.lower(id).index)
    }

    pub(super) fn list_index(&self, index: &Index) -> Listing {
        let mut firsts: HashMap<InodeIdx, Vec<u8>> = HashMap::new();
        let mut listing = Listing::new();
        let mut path: Vec<Vec<u8>> = Vec::new();
        listing.insert(Vec::new(), self.see(index, InodeIdx::ROOT, Vec::new()));
        for step in Walk::new(index, InodeIdx::ROOT).unwrap() {
            match step.unwrap() {
                Step::Leave { .. } => {}
                Step::Entry { depth, entry } => {
                    path.truncate(depth);
                    path.push(entry.name.to_vec());
                    listing.insert(path.join(&b'/'), self.see(index, entry.inode, Vec::new()));
                }
            }
        }
        // Inode numbers follow directories, the map is sorted by path: determine first names in a
        // second pass.
        let inodes: Vec<_> = listing.keys().map(|path| at(index, path)).collect();
        for ((path, seen), inode) in listing.iter_mut().zip(inodes) {
            seen.first_name.clone_from(firsts.entry(inode).or_insert_with(|| path.clone()));
        }
        listing
    }

    fn see(&self, index: &Index, inode: InodeIdx, first_name: Vec<u8>) -> Seen {
        let attr = index.attr(inode).unwrap();
        let xattrs = index.xattrs(inode).unwrap();
        let xattrs = xattrs.iter().map(|x| x.unwrap()).map(|(n, v)| (n.to_vec(), v.to_vec()));
        let target = index.symlink(inode).map(<[u8]>::to_vec).unwrap_or_default();
        let mut data: Vec<Range<u64>> = Vec::new();
        let mut contents = None;
        match index.data(inode) {
            Ok(FileData::Hole) => contents = Some(Digest::of(b"")),
            Ok(FileData::Inline(bytes)) => {
                contents = Some(Digest::of(bytes));
                data.push(0..attr.size);
            }
            Ok(FileData::Extents(extents)) => {
                let mut hasher = blake3::Hasher::new();
                for extent in extents.iter() {
                    let extent = extent.unwrap();
                    let raw = self.group(index, extent.group);
                    let start = extent.group_offset as usize;
                    hasher.update(&raw[start..start + extent.len as usize]);
                    match data.last_mut() {
                        Some(last) if last.end == extent.file_offset => {
                            last.end = extent.file_end();
                        }
                        _ => data.push(extent.file_offset..extent.file_end()),
                    }
                }
                contents = Some(Digest::from_bytes(*hasher.finalize().as_bytes()));
                if let Some(digest) = index.content(inode).unwrap() {
                    assert_eq!(contents, Some(digest));
                }
            }
            Err(_) => {}
        }
        Seen { attr, xattrs: xattrs.collect(), target, contents, data, first_name }
    }

    fn group(&self, index: &Index, group: inlay_store::format::GroupIdx) -> Rc<Vec<u8>> {
        let group = index.group(group).unwrap();
        let key = group.digest.0;
        if let Some(raw) = self.groups.borrow().get(&key) {
            return raw.clone();
        }
        let remote = self.host.remote();
        let blob = ObjectKey::Blob(index.blob(group.blob).unwrap().id);
        let range = group.offset..group.offset + u64::from(group.stored_len);
        let stored = self.host.wait(remote.get_range(&blob, range, remote.policy().budget()));
        let raw = Rc::new(decode_group(&stored.unwrap(), &group).unwrap());
        self.groups.borrow_mut().insert(key, raw.clone());
        raw
    }
}

fn at(index: &Index, path: &[u8]) -> InodeIdx {
    path.split(|b| *b == b'/')
        .filter(|name| !name.is_empty())
        .fold(InodeIdx::ROOT, |dir, name| index.lookup(dir, name).unwrap().unwrap())
}

/// Panics at the first difference between two listings.
pub(super) fn assert_same(left: &Listing, right: &Listing) {
    for (path, seen) in left {
        match right.get(path) {
            None => panic!("'{}' is missing on the right: {seen:?}", path.escape_ascii()),
            Some(other) => assert_eq!(seen, other, "{}", path.escape_ascii()),
        }
    }
    for (path, seen) in right {
        assert!(left.contains_key(path), "only right: '{}': {seen:?}", path.escape_ascii());
    }
}

/// An overlay on a directory.
pub(super) struct Overlay {
    _dir: TempDir,
    pub(super) base: PathBuf,
    pub(super) lower: Lower,
    lower_dir: PathBuf,
    mounted: bool,
}

impl Overlay {
    /// Mounts an overlay on `lower_dir`, whose snapshot is `lower`.
    pub(super) fn new(lower_dir: &Path, lower: Lower) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_owned();
        for name in ["upper", "work", "merged"] {
            fs::create_dir(base.join(name)).unwrap();
        }
        inlay_mounts::testing::copy_attributes(lower_dir, &base.join("upper"));
        let lower_dir = lower_dir.to_owned();
        let mut overlay = Self { _dir: dir, base, lower, lower_dir, mounted: false };
        overlay.mount();
        overlay
    }

    pub(super) fn mount(&mut self) {
        let tree = overlay(&self.lower_dir, &self.base.join("upper"), &self.base.join("work"));
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, self.base.join("merged"), flags).unwrap();
        self.mounted = true;
    }

    pub(super) fn unmount(&mut self) {
        /// A child forked by another test holds copies of all descriptors until it calls execve(2).
        const TRIES: u32 = 1000;
        if !std::mem::take(&mut self.mounted) {
            return;
        }
        let mut outcome = unmount(self.base.join("merged"), UnmountFlags::empty());
        for _ in 0..TRIES {
            if outcome != Err(Errno::BUSY) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            outcome = unmount(self.base.join("merged"), UnmountFlags::empty());
        }
        outcome.unwrap();
    }

    /// Returns the mount point.
    pub(super) fn merged(&self) -> PathBuf {
        self.base.join("merged")
    }

    pub(super) fn upper(&self) -> PathBuf {
        self.base.join("upper")
    }

    pub(super) fn view(&self) -> View {
        View { lower: Some(self.lower.clone()), upper: Some(self.upper()), owners: None }
    }

    pub(super) fn subject(&self) -> Simple {
        Simple::new(self.view(), "")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if self.mounted {
            unmount(self.base.join("merged"), UnmountFlags::DETACH).ok();
        }
    }
}

/// A plan without processes.
pub(super) struct Simple(pub(super) Plan);

impl Simple {
    pub(super) fn new(view: View, path: &str) -> Self {
        Self(Plan { view, path: path.into(), grafts: Vec::new(), left_out: Vec::new() })
    }
}

impl Subject for Simple {
    fn plan(&self) -> Result<Plan, SubjectError> {
        Ok(self.0.clone())
    }

    fn freeze(&self) -> Result<Box<dyn Frozen + '_>, SubjectError> {
        Ok(Box::new(Nothing))
    }

    fn processes(&self) -> Result<Vec<u32>, SubjectError> {
        Ok(Vec::new())
    }
}

struct Nothing;

impl Frozen for Nothing {
    fn until(&self) -> Option<Instant> {
        None
    }

    fn thaw(self: Box<Self>) -> Result<Thawed, SubjectError> {
        Ok(Thawed { stood: Stood::Throughout, frozen: Duration::ZERO })
    }
}
