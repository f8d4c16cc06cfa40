//! A directory as a store, with the conditional replacement that the library's own one lacks.

use std::fmt;
use std::fs::File;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UpdateVersion,
};
use rustix::fs::{FlockOperation, flock};

const STORE: &str = "directory";

/// Objects in a directory. What is put is on the disk, not only in its cache, when `put` returns.
#[derive(Debug, Clone)]
pub(super) struct LocalDirectory {
    inner: LocalFileSystem,
    root: Arc<PathBuf>,
}

impl LocalDirectory {
    /// Opens the directory, and makes it if it is missing.
    pub(super) fn open(root: &FilePath) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(broken)?;
        Ok(Self {
            inner: LocalFileSystem::new_with_prefix(root)?.with_fsync(true),
            root: Arc::new(root.to_owned()),
        })
    }

    /// Replaces an object that is still the one with `expected`'s tag. The lock on the root makes
    /// looking and replacing one step among all processes that use this directory. One that is
    /// taken is reported, not waited for: retries are the caller's.
    fn replace(
        &self,
        at: &Path,
        payload: PutPayload,
        expected: &UpdateVersion,
    ) -> Result<PutResult> {
        let lock = File::open(self.root.as_path()).map_err(broken)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| broken(e.into()))?;
        futures::executor::block_on(async {
            let found = match self.inner.head(at).await {
                Err(Error::NotFound { path, source }) => {
                    return Err(Error::Precondition { path, source });
                }
                found => found?,
            };
            if found.e_tag != expected.e_tag {
                let source = "the object has been replaced".into();
                return Err(Error::Precondition { path: at.to_string(), source });
            }
            self.inner.put(at, payload).await
        })
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::Generic { store: STORE, source: error.into() }
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
        let PutMode::Update(expected) = opts.mode else {
            return self.inner.put_opts(at, payload, opts).await;
        };
        let (own, at) = (self.clone(), at.clone());
        // A blocking task runs to its end even if nobody waits for it any more, so the lock is
        // never given back before the object is replaced.
        tokio::task::spawn_blocking(move || own.replace(&at, payload, &expected)).await?
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
