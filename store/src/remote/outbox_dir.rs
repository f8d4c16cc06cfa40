//! Reads through a outbox directory: a local directory in front of a store, which serves its objects
//! as if the store had them.
//!
//! Snapshots that are sealed on this host wait in such a directory (the outbox) until they are
//! uploaded. Writes always go to the store, and reads that decide about a write can skip the
//! directory ([`StoreOnly`]). An unused directory costs nothing: no read probes it.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde::{Deserialize, Serialize};

use super::key::{NAMES, Name, ObjectKey, SNAPSHOTS};
use crate::ids::SnapshotId;

/// Directory next to the objects: the last known target of each name in the store.
const SEEN: &str = "seen";
/// Directory next to the objects: names that could not be moved, because another host had moved
/// them.
const CONFLICTS: &str = "conflicts";

/// A outbox directory. Clones share their state.
#[derive(Debug, Clone)]
pub struct OutboxDir {
    dir: PathBuf,
    used: Arc<AtomicBool>,
}

/// A request extension for reads that must bypass the outbox directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreOnly;

/// The last known target of a name in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameSeen {
    /// This host has never read the name.
    Unknown,
    /// The name was not set.
    Nothing,
    /// The name referred to this snapshot.
    Snapshot(SnapshotId),
}

impl From<Option<SnapshotId>> for NameSeen {
    fn from(id: Option<SnapshotId>) -> Self {
        id.map_or(Self::Nothing, Self::Snapshot)
    }
}

impl OutboxDir {
    /// Creates a handle for `dir`, which has the layout of a store. Marks it as used unless it is
    /// empty.
    pub fn new(dir: PathBuf) -> Self {
        // A directory that cannot be read counts as used, so that reads report its error.
        let absent = |part| {
            matches!(fs::symlink_metadata(dir.join(part)),
                Err(error) if error.kind() == io::ErrorKind::NotFound)
        };
        let used = Arc::new(AtomicBool::new(!(absent(SNAPSHOTS) && absent(NAMES))));
        Self { dir, used }
    }

    /// Returns the path of the directory.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Sets for all clones whether reads probe the directory.
    pub fn set_used(&self, used: Used) {
        self.used.store(used == Used::Yes, Ordering::SeqCst);
    }

    /// Returns whether reads probe the directory.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::SeqCst)
    }

    /// Returns the path of an object in the directory. The object need not exist.
    pub fn file(&self, key: &ObjectKey) -> PathBuf {
        key.file(&self.dir)
    }

    /// Returns whether the directory has its own record of `name`.
    pub fn has_name(&self, name: &Name) -> bool {
        self.is_used() && self.file(&ObjectKey::Name(name.clone())).exists()
    }

    /// Returns the path of the file that records the last known target of `name`.
    pub fn seen_file(&self, name: &Name) -> PathBuf {
        self.beside(SEEN, name)
    }

    /// Returns the directory of names that could not be moved.
    pub fn conflicts(&self) -> PathBuf {
        self.dir.with_file_name(CONFLICTS)
    }

    /// Returns the path of the file that records that `name` could not be moved.
    pub fn conflict_file(&self, name: &Name) -> PathBuf {
        self.beside(CONFLICTS, name)
    }

    fn beside(&self, part: &str, name: &Name) -> PathBuf {
        let file = ObjectKey::Name(name.clone()).file(std::path::Path::new(""));
        self.dir.with_file_name(part).join(file.file_name().unwrap_or_default())
    }

    /// Returns the last known target of `name` in the store.
    pub fn seen(&self, name: &Name) -> NameSeen {
        let path = self.seen_file(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "can't read a note about a name");
                }
                return NameSeen::Unknown;
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "a note about a name is damaged");
            NameSeen::Unknown
        })
    }

    /// Records the current target of `name` in the store. Best effort: without it, a later move of
    /// the name relies on timestamps.
    pub fn note(&self, name: &Name, id: Option<SnapshotId>) {
        let seen = NameSeen::from(id);
        if self.seen(name) == seen {
            return;
        }
        let path = self.seen_file(name);
        let Some(dir) = path.parent() else { return };
        // If this host never seals for this store, it needs no notes.
        if !self.dir.parent().is_some_and(std::path::Path::is_dir) {
            return;
        }
        let written = serde_json::to_vec(&seen).map_err(io::Error::other).and_then(|json| {
            fs::create_dir_all(dir)?;
            let beside = tempfile::NamedTempFile::new_in(dir)?;
            fs::write(beside.path(), json)?;
            beside.persist(&path).map_err(|error| error.error)
        });
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "can't note the snapshot of a name");
            // A stale note is worse than none.
            fs::remove_file(&path).ok();
        }
    }

    /// Called after this host has set or removed `name` in the store: discards pending moves of the
    /// name, which are now stale.
    pub(super) fn name_was_set(&self, name: &Name, id: Option<SnapshotId>) {
        for path in [self.file(&ObjectKey::Name(name.clone())), self.conflict_file(name)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "can't remove an outdated name");
            }
        }
        self.note(name, id);
    }
}

/// Whether the directory may contain objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// It may.
    Yes,
    /// It is empty.
    No,
}

/// The outbox directory and the store behind it, as one object store.
#[derive(Debug)]
pub(super) struct OutboxFirst {
    outbox_dir: Arc<dyn ObjectStore>,
    far: Arc<dyn ObjectStore>,
    /// The prefix of all paths in the store; paths in the directory lack it.
    root: Path,
    options: OutboxDir,
}

impl OutboxFirst {
    pub(super) fn new(
        outbox_dir: Arc<dyn ObjectStore>,
        far: Arc<dyn ObjectStore>,
        root: Path,
        options: OutboxDir,
    ) -> Self {
        Self { outbox_dir, far, root, options }
    }

    /// Returns the path of an object in the directory.
    fn inside(&self, at: &Path) -> Option<Path> {
        Some(at.prefix_match(&self.root)?.collect())
    }

    /// Adds the store's prefix to the path of an object in the directory.
    fn outside(root: &Path, mut meta: ObjectMeta) -> ObjectMeta {
        meta.location = meta.location.parts().fold(root.clone(), Path::join);
        meta
    }
}

impl fmt::Display for OutboxFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.far)
    }
}

#[async_trait]
impl ObjectStore for OutboxFirst {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.far.put_opts(at, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.far.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let store_only = options.extensions.get::<StoreOnly>().is_some();
        if !store_only
            && self.options.is_used()
            && let Some(inside) = self.inside(at)
        {
            match self.outbox_dir.get_opts(&inside, options.clone()).await {
                Err(Error::NotFound { .. }) => {}
                Ok(mut found) => {
                    found.meta = Self::outside(&self.root, found.meta);
                    return Ok(found);
                }
                Err(error) => return Err(error),
            }
        }
        self.far.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (outbox_dir, root, used) =
            (Arc::clone(&self.outbox_dir), self.root.clone(), self.options.clone());
        let locations = locations.then(move |at| {
            let (outbox_dir, root, used) = (Arc::clone(&outbox_dir), root.clone(), used.is_used());
            async move {
                let at = at?;
                if used && let Some(inside) = at.prefix_match(&root).map(Iterator::collect::<Path>)
                {
                    match outbox_dir.delete(&inside).await {
                        Err(Error::NotFound { .. }) | Ok(()) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(at)
            }
        });
        self.far.delete_stream(locations.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let far = self.far.list(prefix);
        let inside = prefix.map_or_else(|| Some(Path::default()), |prefix| self.inside(prefix));
        let Some(inside) = inside.filter(|_| self.options.is_used()) else { return far };
        let root = self.root.clone();
        let outbox_dir = self.outbox_dir.list(Some(&inside));
        // List the directory first: an upload puts an object into the store before it removes it
        // from the directory. An object in both is listed twice, which callers expect.
        outbox_dir.map(move |meta| Ok(Self::outside(&root, meta?))).chain(far).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let inside = prefix.map_or_else(|| Some(Path::default()), |prefix| self.inside(prefix));
        let outbox_dir = match inside.filter(|_| self.options.is_used()) {
            Some(inside) => self.outbox_dir.list_with_delimiter(Some(&inside)).await?.objects,
            None => Vec::new(),
        };
        let mut listed = self.far.list_with_delimiter(prefix).await?;
        listed.objects.extend(outbox_dir.into_iter().map(|meta| Self::outside(&self.root, meta)));
        listed.objects.sort_by(|one, other| one.location.cmp(&other.location));
        listed.objects.dedup_by(|one, other| one.location == other.location);
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.far.copy_opts(from, to, options).await
    }
}
