//! Remembers, for each file of a captured directory, its inode in the last snapshot. The content of
//! an unchanged file is taken from there.
//!
//! The file is only a cache. It is verified as a whole by a digest, and each inode by kind, time
//! and size before it is used.

use std::fs::DirBuilder;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use inlay_base::durable::{self, Volatile};
use inlay_base::record;
use inlay_store::format::{FileKind, Index, InodeIdx, Timestamp};
use inlay_store::ids::{Digest, IndexDigest, Kind, SnapshotId};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use inlay_store::remote::SnapshotRecord;

use super::last;
use super::stat::{InodeId, Stamp, Stat};

const MAGIC: [u8; 8] = *b"INLAYSEN";
const VERSION: u32 = 1;
/// The maximum file size, in bytes: enough for 16 million objects.
const LEN_MAX: u64 = 1 << 30;
const DIGEST_LEN: usize = 32;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    kind: U32,
    index: Digest,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    device: [U32; 2],
    inode: U64,
    size: U64,
    mtime: I64,
    ctime: I64,
    mtime_ns: U32,
    ctime_ns: U32,
    snapshot_inode: U32,
    reserved: U32,
}

impl RawRecord {
    fn id(&self) -> InodeId {
        let [major, minor] = self.device;
        InodeId { device: (major.get(), minor.get()), inode: self.inode.get() }
    }

    fn stamp(&self) -> Stamp {
        let time = |secs: I64, nanos: U32| Timestamp { secs: secs.get(), nanos: nanos.get() };
        Stamp {
            size: self.size.get(),
            mtime: time(self.mtime, self.mtime_ns),
            ctime: time(self.ctime, self.ctime_ns),
        }
    }
}

/// What the last capture saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    snapshot: Option<SnapshotId>,
    index: Option<Index>,
    bytes: Vec<u8>,
}

/// A scan of this capture that is not saved yet.
#[derive(Debug, Clone)]
pub(super) struct PendingScan {
    seeing: Seeing,
    path: PathBuf,
}

impl PendingScan {
    /// Creates it, to be saved at `path`.
    pub(super) fn new(seeing: Seeing, path: PathBuf) -> Self {
        Self { seeing, path }
    }

    /// Saves the scan and the snapshot's record. Best effort.
    pub(super) fn save(self, record: &SnapshotRecord) {
        let Self { seeing, path } = self;
        match seeing.write(record.id, &path) {
            Ok(()) => last::keep(&path, record),
            // The existing file is from an older snapshot and still valid.
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "can't save the scan; the next snapshot reads all files");
            }
        }
    }
}

/// Collects what this capture sees.
#[derive(Debug, Default, Clone)]
pub(super) struct Seeing(Vec<RawRecord>);

impl Seen {
    /// Returns the path of the file for the directory identified by `what`, within the cache
    /// directory `dir`.
    pub(super) fn path(dir: &Path, what: &[u8]) -> PathBuf {
        dir.join(format!("{}.seen", Digest::of(what).to_hex()))
    }

    /// Reads the file at `path`; empty if it is missing or unusable.
    pub(super) fn read(path: &Path) -> Self {
        match read(path) {
            Ok(Some((snapshot, bytes))) => Self { snapshot: Some(snapshot), index: None, bytes },
            Ok(None) => {
                tracing::warn!(path = %path.display(), "ignoring a damaged scan; the next snapshot reads all files");
                Self::default()
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "can't read the last scan; the next snapshot reads all files");
                }
                Self::default()
            }
        }
    }

    /// Returns the snapshot that its inodes refer to.
    pub(super) fn snapshot(&self) -> Option<SnapshotId> {
        self.snapshot
    }

    fn records(&self) -> &[RawRecord] {
        let body = self
            .bytes
            .get(size_of::<RawHeader>()..self.bytes.len().saturating_sub(DIGEST_LEN))
            .unwrap_or(&[]);
        <[RawRecord]>::ref_from_bytes(body).unwrap_or(&[])
    }

    /// Supplies the index of that snapshot. Without it, nothing is found.
    pub(super) fn open(&mut self, index: Index) {
        self.index = Some(index);
    }

    /// Returns the index of that snapshot.
    pub(super) fn index(&self) -> Option<Index> {
        self.index.clone()
    }

    /// Returns the inode of an object in the snapshot if it is unchanged since.
    pub(super) fn find(&self, stat: &Stat) -> Option<InodeIdx> {
        let index = self.index.as_ref()?;
        let records = self.records();
        let place = records.binary_search_by_key(&stat.id, RawRecord::id).ok()?;
        let record = records.get(place).filter(|record| record.stamp() == stat.stamp)?;
        let inode = InodeIdx(record.snapshot_inode.get());
        let attr = index.attr(inode).ok()?;
        let fits = Some(attr.kind) == stat.kind()
            && attr.mtime == stat.stamp.mtime
            && (attr.kind != FileKind::Regular || attr.size == stat.stamp.size);
        fits.then_some(inode)
    }
}

impl Seeing {
    /// Records that the inode `id` is `inode` in the snapshot.
    pub(super) fn add(&mut self, id: InodeId, stamp: &Stamp, inode: InodeIdx) {
        self.0.push(RawRecord {
            device: [id.device.0.into(), id.device.1.into()],
            inode: id.inode.into(),
            size: stamp.size.into(),
            mtime: stamp.mtime.secs.into(),
            ctime: stamp.ctime.secs.into(),
            mtime_ns: stamp.mtime.nanos.into(),
            ctime_ns: stamp.ctime.nanos.into(),
            snapshot_inode: inode.0.into(),
            reserved: 0.into(),
        });
    }

    /// Writes the file at `path`. Not synced: a crash may lose it, and it is verified when it is
    /// read.
    pub(super) fn write(mut self, snapshot: SnapshotId, path: &Path) -> io::Result<()> {
        self.0.sort_unstable_by_key(RawRecord::id);
        self.0.dedup_by_key(|record| record.id());
        let header = RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            kind: snapshot.kind.code().into(),
            index: snapshot.index.0,
        };
        let mut bytes = Vec::with_capacity(
            size_of::<RawHeader>() + self.0.len() * size_of::<RawRecord>() + DIGEST_LEN,
        );
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(self.0.as_bytes());
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        make_dirs(path)?;
        durable::write_volatile(path, &bytes, Volatile("it ends with a digest, and is made again"))
    }
}

/// Creates the two innermost parents of `path`, but none above: the directory of a sandbox removed
/// in the meantime must not reappear.
fn make_dirs(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().skip(1).take(2).collect();
    for dir in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Option<(SnapshotId, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let file = record::open(path).map_err(io::Error::other)?;
    let file = file.ok_or(io::ErrorKind::NotFound)?;
    let len = file.metadata()?.len();
    if len > LEN_MAX {
        return Ok(None);
    }
    bytes.reserve_exact(usize::try_from(len).unwrap_or(0));
    file.take(LEN_MAX).read_to_end(&mut bytes)?;
    Ok(check(&bytes).map(|snapshot| (snapshot, bytes)))
}

fn check(bytes: &[u8]) -> Option<SnapshotId> {
    let (body, digest) = bytes.split_last_chunk::<DIGEST_LEN>()?;
    if Digest::of(body).as_bytes() != digest {
        return None;
    }
    let (header, records) = RawHeader::ref_from_prefix(body).ok()?;
    let known = header.magic == MAGIC && header.version.get() == VERSION;
    let kind = Kind::from_code(header.kind.get())?;
    let whole = records.len() % size_of::<RawRecord>() == 0;
    (known && whole).then_some(SnapshotId { kind, index: IndexDigest(header.index) })
}
