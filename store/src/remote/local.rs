//! A directory as a store: durable writes, conditional replacement, and reads of regular files
//! only.
//!
//! `object_store`'s own client opens any file at an object's path, which blocks on a FIFO and may
//! act on a device, and it syncs a new directory only in the process that created it. Both matter
//! here: other programs can write to the directory, and a record must not outlive the objects that
//! it refers to.

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, FileType, Metadata, ReadDir};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use inlay_base::durable;
use object_store::local::LocalFileSystem;
use object_store::path::{Path, PathPart};
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UpdateVersion,
};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::records;
use crate::ids::Digest;
use crate::profile::ENCODED_LEN_MAX;

const STORE: &str = "directory";
/// The maximum number of concurrent deletions of a stream.
const DELETIONS: usize = 10;
/// Directory entries read per batch.
const LIST_BATCH: usize = 1024;
/// The maximum number of directories remembered as durable; beyond it, some are synced again.
const DURABLE_MAX: usize = 4096;
/// The maximum length of an object that is replaced under a condition: a record or a profile, in
/// bytes. Longer objects are immutable: their tags have no digest, and their writes take no lock.
const MUTABLE_LEN_MAX: u64 = ENCODED_LEN_MAX;
const _: () = assert!(records::LEN_MAX <= MUTABLE_LEN_MAX);
/// The maximum wait for the lock on the root. It is held for one durable write of a small object.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// The wait between two attempts to take the lock.
const LOCK_POLL: Duration = Duration::from_millis(2);
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// The path of an object is not a regular file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is {found}, not a regular file")]
pub(super) struct NotAFile {
    found: &'static str,
}

/// A range starts past the end of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has only {len} bytes")]
pub(super) struct BehindEnd {
    pub(super) len: u64,
}

impl NotAFile {
    fn of(kind: FileType) -> Self {
        let found = match kind {
            _ if kind.is_dir() => "a directory",
            _ if kind.is_symlink() => "a symbolic link",
            _ if kind.is_fifo() => "a FIFO",
            _ if kind.is_socket() => "a socket",
            _ => "a device",
        };
        Self { found }
    }
}

/// A request extension that makes an object durable while it is read: the process that wrote it may
/// have died before it synced the object's name. Stores other than directories ignore it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settle;

/// A response extension that marks a response from a local disk, where reading is cheap.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnDisk;

/// Objects in a directory. A put is durable when it returns.
#[derive(Debug, Clone)]
pub(super) struct LocalDirectory {
    inner: LocalFileSystem,
    root: Arc<PathBuf>,
    /// Directories whose names this process has synced in their parents.
    durable: Arc<Mutex<HashSet<PathBuf>>>,
}

impl LocalDirectory {
    /// Opens the directory. Creates it if it is missing.
    pub(super) fn open(root: &FilePath) -> Result<Self> {
        create_durably(root).map_err(broken)?;
        let root = root.canonicalize().map_err(broken)?;
        Ok(Self {
            inner: LocalFileSystem::new_with_prefix(&root)?.with_fsync(true),
            root: Arc::new(root),
            durable: Arc::default(),
        })
    }

    /// Locks the root among all processes that use this directory: exclusively for a conditional
    /// replacement, shared for other changes, which exclude only replacements. Fails if the lock is
    /// not free within `LOCK_WAIT`: the caller retries.
    fn lock(&self, how: FlockOperation) -> io::Result<File> {
        let lock = File::open(self.root.as_path())?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match flock(&lock, how) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_POLL);
                }
                locked => return Ok(locked.map(|()| lock)?),
            }
        }
    }

    /// Keeps replacements out. A no-op on a filesystem without locks, where replacements fail.
    fn share(&self) -> Result<Option<File>> {
        match self.lock(SHARED) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::NOLCK.raw_os_error()) => Ok(None),
            locked => locked.map(Some).map_err(broken),
        }
    }

    /// Writes an object without a condition on its version. A small object may be one that is also
    /// replaced conditionally: a write between the check and the replacement would be lost.
    fn write(&self, at: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let is_mutable = payload.content_length() as u64 <= MUTABLE_LEN_MAX;
        let _lock = if is_mutable { self.share()? } else { None };
        futures::executor::block_on(self.inner.put_opts(at, payload, opts))
    }

    /// Deletes an object. Not between the check and the write of a replacement, which would create
    /// the object again.
    fn remove(&self, at: &Path) -> Result<()> {
        let _lock = self.share()?;
        futures::executor::block_on(self.inner.delete(at))
    }

    /// Replaces an object if its tag is still that of `expected`. The lock makes the check and the
    /// replacement atomic.
    fn replace(
        &self,
        at: &Path,
        payload: PutPayload,
        expected: &UpdateVersion,
    ) -> Result<PutResult> {
        let _lock = self.lock(EXCLUSIVE).map_err(broken)?;
        let found = match self.get(at, &GetOptions::new().with_head(true)) {
            Err(Error::NotFound { path, source }) => {
                return Err(Error::Precondition { path, source });
            }
            found => found?.meta,
        };
        if found.e_tag != expected.e_tag {
            let source = "the object has been replaced".into();
            return Err(Error::Precondition { path: at.to_string(), source });
        }
        futures::executor::block_on(self.inner.put(at, payload))
    }

    /// Creates the parent directories of an object and makes them durable. Directories that another
    /// process created are synced here too, because it may have died before it synced them.
    fn prepare(&self, file: &FilePath) -> io::Result<()> {
        let dirs = file.ancestors().skip(1).take_while(|dir| *dir != self.root.as_path());
        let missing: Vec<&FilePath> = {
            let durable = self.durable.lock();
            dirs.filter(|dir| !durable.contains(*dir)).collect()
        };
        // From the root down, so that each parent exists.
        for dir in missing.into_iter().rev() {
            match std::fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => durable::sync_dir(parent(dir))?,
            }
            let mut durable = self.durable.lock();
            if durable.len() >= DURABLE_MAX {
                durable.clear();
            }
            durable.insert(dir.to_owned());
        }
        Ok(())
    }

    fn get(&self, at: &Path, options: &GetOptions) -> Result<GetResult> {
        let path = self.inner.path_to_filesystem(at)?;
        let (file, stat) = open_object(&path).map_err(|error| failed(at, error))?;
        let mut meta = described(&stat, at.clone());
        // Versions are of whole objects: a read of a part would read and hash all of a small one.
        if options.range.is_none() {
            meta.e_tag = Some(tag(&file, &stat).map_err(broken)?);
        }
        options.check_preconditions(&meta)?;
        if options.extensions.get::<Settle>().is_some() {
            file.sync_all().map_err(broken)?;
            self.prepare(&path).map_err(broken)?;
            durable::sync_dir(parent(&path)).map_err(broken)?;
        }
        let mut extensions = Extensions::default();
        extensions.insert(OnDisk);
        let range = match &options.range {
            Some(range) => range.as_range(meta.size).map_err(|_| Error::Generic {
                store: STORE,
                source: BehindEnd { len: meta.size }.into(),
            })?,
            None => 0..meta.size,
        };
        Ok(GetResult {
            payload: GetResultPayload::File(file, path),
            range,
            meta,
            attributes: Attributes::default(),
            extensions,
        })
    }
}

/// Creates `dir` and its missing ancestors durably, with the default mode (umask).
fn create_durably(dir: &FilePath) -> io::Result<()> {
    let missing: Vec<&FilePath> =
        dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => durable::sync_dir(parent(dir))?,
        }
    }
    // Fail here, not at the first object, if the path is not a directory.
    std::fs::read_dir(dir).map(drop)
}

fn parent(path: &FilePath) -> &FilePath {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => FilePath::new("."),
        None => path,
    }
}

/// Returns the metadata of the regular file at `path`. Fails with [`NotAFile`] for other types.
fn regular(path: &FilePath) -> io::Result<Metadata> {
    let meta = std::fs::symlink_metadata(path)?;
    check_regular(&meta)?;
    Ok(meta)
}

fn check_regular(meta: &Metadata) -> io::Result<()> {
    if meta.is_file() { Ok(()) } else { Err(io::Error::other(NotAFile::of(meta.file_type()))) }
}

/// Opens the regular file at `path`. Checks the type first, because opening a device can have side
/// effects. Opens without blocking or following a link, because the file can be replaced in
/// between.
fn open_object(path: &FilePath) -> io::Result<(File, Metadata)> {
    regular(path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?);
    let meta = file.metadata()?;
    check_regular(&meta)?;
    Ok((file, meta))
}

/// Returns the metadata of an object, without its tag.
fn described(meta: &Metadata, location: Path) -> ObjectMeta {
    let modified = meta.modified().unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    let (last_modified, size) = (modified.into(), meta.len());
    ObjectMeta { location, last_modified, size, e_tag: None, version: None }
}

/// Returns the tag of an object, which changes with each replacement: inode, mtime and size, and
/// the digest of an object that may be replaced conditionally. Without the digest, the second of
/// two replacements within one tick of the filesystem's clock could reuse the inode and bring the
/// first tag back.
fn tag(file: &File, meta: &Metadata) -> io::Result<String> {
    let (inode, size) = (meta.ino(), meta.len());
    let identity = format!("{inode:x}-{:x}-{:x}-{size:x}", meta.mtime(), meta.mtime_nsec());
    if size > MUTABLE_LEN_MAX {
        return Ok(format!("\"{identity}\""));
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(format!("\"{identity}-{}\"", Digest::of(&bytes).to_hex()))
}

fn failed(at: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound { path: at.to_string(), source: error.into() },
        _ => broken(error),
    }
}

fn broken(error: io::Error) -> Error {
    Error::Generic { store: STORE, source: error.into() }
}

/// Runs `work` on a thread that may block. It runs to completion even if the caller is cancelled.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// The direct entries of a directory of the store, read in batches.
struct Listing {
    entries: ReadDir,
    prefix: Path,
}

impl Listing {
    /// Returns `None` if the directory does not exist.
    fn open(dir: &FilePath, prefix: Path) -> Result<Option<Self>> {
        match std::fs::read_dir(dir) {
            Ok(entries) => Ok(Some(Self { entries, prefix })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(broken(error)),
        }
    }

    /// Returns the next batch of entries with their types; empty at the end. Skips entries with
    /// names that are not UTF-8 and entries that are deleted concurrently.
    fn next(&mut self) -> Result<Vec<(ObjectMeta, FileType)>> {
        let mut batch = Vec::new();
        while batch.len() < LIST_BATCH {
            let Some(entry) = self.entries.next() else { break };
            let entry = entry.map_err(broken)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let meta = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(broken)?,
            };
            let at = self.prefix.clone().join(PathPart::from(name));
            batch.push((described(&meta, at), meta.file_type()));
        }
        Ok(batch)
    }
}

impl fmt::Display for LocalDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE} {}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for LocalDirectory {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let path = self.inner.path_to_filesystem(at)?;
        let (own, at) = (self.clone(), at.clone());
        // Cancelling the caller does not release the lock of a replacement early.
        blocking(move || {
            own.prepare(&path).map_err(broken)?;
            match opts.mode {
                PutMode::Update(expected) => own.replace(&at, payload, &expected),
                _ => own.write(&at, payload, opts),
            }
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let (own, at) = (self.clone(), at.clone());
        blocking(move || own.get(&at, &options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let own = self.clone();
        locations
            .map(move |at| {
                let own = own.clone();
                async move {
                    let at = at?;
                    blocking(move || own.remove(&at).map(|()| at)).await
                }
            })
            .buffered(DELETIONS)
            .boxed()
    }

    /// Lists the direct entries of a directory, of any type: listed directories of a store have no
    /// subdirectories, and an entry that is not a regular file fails when it is read.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let dir = self.root.join(prefix.as_ref());
        let opened = async move { blocking(move || Listing::open(&dir, prefix)).await };
        let batches = stream::once(opened).flat_map(|listing| match listing {
            Err(error) => stream::once(async { Err(error) }).boxed(),
            Ok(None) => stream::empty().boxed(),
            Ok(Some(listing)) => stream::try_unfold(listing, |mut listing| async {
                let (batch, listing) = blocking(move || Ok((listing.next()?, listing))).await?;
                Ok((!batch.is_empty()).then_some((batch, listing)))
            })
            .boxed(),
        });
        let entries = batches.flat_map(|batch| match batch {
            Ok(batch) => stream::iter(batch).map(|(meta, _)| Ok(meta)).boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        });
        entries.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let dir = self.root.join(prefix.as_ref());
        blocking(move || {
            let mut listed = ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
                extensions: Extensions::default(),
            };
            let Some(mut listing) = Listing::open(&dir, prefix)? else { return Ok(listed) };
            loop {
                let batch = listing.next()?;
                if batch.is_empty() {
                    return Ok(listed);
                }
                for (meta, kind) in batch {
                    if kind.is_dir() {
                        listed.common_prefixes.push(meta.location);
                    } else {
                        listed.objects.push(meta);
                    }
                }
            }
        })
        .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
