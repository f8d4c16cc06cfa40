//! A directory of this host before a store: what is in it is read from there, as if the store had it.
//!
//! Objects are written to one of the two. What was written to the directory is carried to the store
//! later, by somebody else. As long as the directory is empty it costs nothing: it is not looked into.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};

use super::key::{NAMES, SNAPSHOTS};

/// Where objects go that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Into the directory.
    Near,
    /// Into the store.
    Far,
}

/// A directory before a store. Clones know the same.
#[derive(Debug, Clone)]
pub struct Near {
    dir: PathBuf,
    writes: Writes,
    used: Arc<AtomicBool>,
}

impl Near {
    /// The directory `dir`, which is laid out as a store is. It is looked into if it has
    /// snapshots.
    pub fn new(dir: PathBuf) -> Self {
        let used = Arc::new(AtomicBool::new(dir.join(SNAPSHOTS).is_dir()));
        Self { dir, writes: Writes::Far, used }
    }

    /// The same, with other writes.
    #[must_use]
    pub fn with(&self, writes: Writes) -> Self {
        Self { writes, ..self.clone() }
    }

    /// The directory.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Has all who know it look into the directory, or no longer.
    pub fn set_used(&self, used: Used) {
        self.used.store(used == Used::Yes, Ordering::SeqCst);
    }

    fn is_used(&self) -> bool {
        self.used.load(Ordering::SeqCst)
    }
}

/// Whether there may be anything in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// There may.
    Yes,
    /// There is nothing.
    No,
}

/// The two as one.
#[derive(Debug)]
pub(super) struct NearFirst {
    near: Arc<dyn ObjectStore>,
    far: Arc<dyn ObjectStore>,
    /// What all paths of the store begin with, and those of the directory do not.
    root: Path,
    options: Near,
}

impl NearFirst {
    pub(super) fn new(
        near: Arc<dyn ObjectStore>,
        far: Arc<dyn ObjectStore>,
        root: Path,
        options: Near,
    ) -> Self {
        Self { near, far, root, options }
    }

    /// An object's path in the directory.
    fn inside(&self, at: &Path) -> Option<Path> {
        Some(at.prefix_match(&self.root)?.collect())
    }

    fn outside(root: &Path, mut meta: ObjectMeta) -> ObjectMeta {
        meta.location = meta.location.parts().fold(root.clone(), Path::join);
        meta
    }

    /// A name that is changed in the store is no longer what the directory says.
    async fn forget_name(&self, at: &Path) -> Result<()> {
        let Some(inside) = self.inside(at).filter(|_| self.options.is_used()) else {
            return Ok(());
        };
        if !inside.prefix_matches(&Path::from(NAMES)) {
            return Ok(());
        }
        match self.near.delete(&inside).await {
            Err(Error::NotFound { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for NearFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.far)
    }
}

#[async_trait]
impl ObjectStore for NearFirst {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let inside = self.inside(at).filter(|_| self.options.writes == Writes::Near);
        let Some(inside) = inside else {
            self.forget_name(at).await?;
            return self.far.put_opts(at, payload, opts).await;
        };
        // What it replaces may be the store's: then the directory has none to compare with.
        let opts = match opts.mode {
            PutMode::Update(_) if self.near.head(&inside).await.is_err() => {
                PutOptions { mode: PutMode::Create, ..opts }
            }
            _ => opts,
        };
        self.near.put_opts(&inside, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inside = self.inside(at).filter(|_| self.options.writes == Writes::Near);
        match inside {
            Some(inside) => self.near.put_multipart_opts(&inside, opts).await,
            None => self.far.put_multipart_opts(at, opts).await,
        }
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        if self.options.is_used()
            && let Some(inside) = self.inside(at)
        {
            match self.near.get_opts(&inside, options.clone()).await {
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
        let (near, root, used) = (Arc::clone(&self.near), self.root.clone(), self.options.clone());
        let locations = locations.then(move |at| {
            let (near, root, used) = (Arc::clone(&near), root.clone(), used.is_used());
            async move {
                let at = at?;
                if used && let Some(inside) = at.prefix_match(&root).map(Iterator::collect::<Path>)
                {
                    match near.delete(&inside).await {
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
        let near = self.near.list(Some(&inside));
        // What is in both is listed twice: those who list know of that.
        near.map(move |meta| Ok(Self::outside(&root, meta?))).chain(far).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.far.list_with_delimiter(prefix).await?;
        let inside = prefix.map_or_else(|| Some(Path::default()), |prefix| self.inside(prefix));
        if let Some(inside) = inside.filter(|_| self.options.is_used()) {
            let near = self.near.list_with_delimiter(Some(&inside)).await?;
            let objects = near.objects.into_iter().map(|meta| Self::outside(&self.root, meta));
            listed.objects.extend(objects);
            listed.objects.sort_by(|one, other| one.location.cmp(&other.location));
            listed.objects.dedup_by(|one, other| one.location == other.location);
        }
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.far.copy_opts(from, to, options).await
    }
}
