//! The store as the rest of the program sees it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::time::timeout;

use super::body::{self, Arrivals, Unwatched};
use super::config::StoreConfig;
use super::endpoint::Endpoint;
use super::error::StoreError;
use super::failure::Failure;
use super::key::ObjectKey;
use super::open::{self, Access, Opened};
use super::retry::{self, Operation, Request, RetryBudget, RetryPolicy};

/// What became of an object that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// It has been uploaded.
    Written,
    /// It was there already, with the same length, and was not uploaded.
    AlreadyThere,
}

/// A store. Cheap to clone; all clones share connections and credentials.
///
/// Every call is retried within its budget, and ends, with an answer or an error that names the
/// object. All need a tokio runtime with time and I/O.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    opened: Opened,
    policy: RetryPolicy,
}

/// What a whole object turned out to be.
pub(super) enum Whole {
    Bytes(Bytes),
    /// Longer than the caller takes: its length in bytes.
    TooLong(u64),
}

impl Remote {
    /// Opens a store. A directory is made if it is missing; a service is not asked anything yet.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        Ok(Self::with(open::open(config)?, config.retry))
    }

    /// Takes a client that is there already. `description` stands for its URL in messages.
    pub fn from_object_store(
        store: Arc<dyn ObjectStore>,
        description: String,
        policy: RetryPolicy,
    ) -> Self {
        let opened = Opened {
            endpoint: Endpoint::fixed(store),
            root: Path::default(),
            description,
            access: Access::ReadWrite,
        };
        Self::with(opened, policy)
    }

    fn with(opened: Opened, policy: RetryPolicy) -> Self {
        Self { inner: Arc::new(Inner { opened, policy }) }
    }

    /// The store's URL, for messages.
    pub fn description(&self) -> &str {
        &self.inner.opened.description
    }

    /// How this store's calls are retried.
    pub fn policy(&self) -> &RetryPolicy {
        &self.inner.policy
    }

    /// The object's full name: the store's URL and the path in it.
    pub fn object_name(&self, key: &ObjectKey) -> String {
        self.full_name(&key.path(&Path::default()))
    }

    pub(super) fn full_name(&self, below_root: &Path) -> String {
        format!("{}/{below_root}", self.description())
    }

    pub(super) fn root(&self) -> &Path {
        &self.inner.opened.root
    }

    /// Reads a whole object of at most `len_max` bytes. A longer one is an error, and is not read.
    pub async fn get(&self, key: &ObjectKey, len_max: u64) -> Result<Bytes, StoreError> {
        match self.get_whole(key, len_max).await? {
            (_, Whole::Bytes(bytes)) => Ok(bytes),
            (_, Whole::TooLong(len)) => {
                Err(StoreError::TooLong { object: self.object_name(key), len, len_max })
            }
        }
    }

    /// Reads a whole object unless it has more than `len_max` bytes, and what the store says of it.
    pub(super) async fn get_whole(
        &self,
        key: &ObjectKey,
        len_max: u64,
    ) -> Result<(ObjectMeta, Whole), StoreError> {
        let path = key.path(self.root());
        let policy = *self.policy();
        let stall = policy.stall;
        self.run(self.request(Operation::Get, key, len_max), |store| {
            let path = path.clone();
            async move {
                let answer = within(stall, store.get(&path)).await?;
                let meta = answer.meta.clone();
                let len = meta.size;
                if len > len_max {
                    return Ok((meta, Whole::TooLong(len)));
                }
                // The loop's limit is for `len_max`; the object may be far shorter.
                let limit = policy.attempt_limit(len);
                let bytes = timeout(limit, body::read(answer, len, stall, &Unwatched)).await;
                let bytes = bytes.map_err(|_| Failure::Timeout(limit))??;
                Ok((meta, Whole::Bytes(bytes)))
            }
        })
        .await
    }

    /// Reads exactly the bytes of `range`. An object that does not have them all is an error.
    pub async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        budget: RetryBudget,
    ) -> Result<Bytes, StoreError> {
        self.get_range_watched(key, range, budget, Arc::new(Unwatched)).await
    }

    /// The same, and `arrivals` is told of bytes as they come: of more than the range has, if they
    /// have to be asked for again.
    pub async fn get_range_watched(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        budget: RetryBudget,
        arrivals: Arc<dyn Arrivals>,
    ) -> Result<Bytes, StoreError> {
        let want = range.end.saturating_sub(range.start);
        if want == 0 {
            return Ok(Bytes::new());
        }
        let path = key.path(self.root());
        let stall = self.policy().stall;
        let request = Request { budget, ..self.request(Operation::GetRange, key, want) };
        self.run(request, |store| {
            let (path, range, arrivals) = (path.clone(), range.clone(), Arc::clone(&arrivals));
            async move {
                let options = GetOptions::new().with_range(Some(GetRange::Bounded(range)));
                let answer = within(stall, store.get_opts(&path, options)).await?;
                body::read(answer, want, stall, &*arrivals).await
            }
        })
        .await
    }

    /// The first `len` bytes of an object, or all of a shorter one, and how many it has: one request
    /// instead of two for an object whose length is not known.
    pub async fn get_start(&self, key: &ObjectKey, len: u64) -> Result<(Bytes, u64), StoreError> {
        let path = key.path(self.root());
        let stall = self.policy().stall;
        self.run(self.request(Operation::GetRange, key, len), |store| {
            let path = path.clone();
            async move {
                let options = GetOptions::new().with_range(Some(GetRange::Bounded(0..len)));
                let answer = within(stall, store.get_opts(&path, options)).await?;
                let total = answer.meta.size;
                let start = body::read(answer, total.min(len), stall, &Unwatched).await?;
                Ok((start, total))
            }
        })
        .await
    }

    /// The object's length in bytes, or nothing if it is not there.
    pub async fn len(&self, key: &ObjectKey) -> Result<Option<u64>, StoreError> {
        let path = key.path(self.root());
        let head = self
            .run(self.request(Operation::Head, key, 0), |store| {
                let path = path.clone();
                async move { Ok(store.head(&path).await?.size) }
            })
            .await;
        match head {
            Err(error) if error.is_not_found() => Ok(None),
            head => head.map(Some),
        }
    }

    /// Writes an object that is named by its content, unless one with the same length is there.
    ///
    /// One with another length is what a broken store has made of it, and is replaced.
    pub async fn put_immutable(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<PutOutcome, StoreError> {
        self.check_writable(key)?;
        let len = bytes.len() as u64;
        if self.len(key).await? == Some(len) {
            return Ok(PutOutcome::AlreadyThere);
        }
        self.put(key, bytes).await?;
        Ok(PutOutcome::Written)
    }

    /// Writes an object, whatever was there.
    pub(super) async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.check_writable(key)?;
        let path = key.path(self.root());
        self.run(self.request(Operation::Put, key, bytes.len() as u64), |store| {
            let (path, payload) = (path.clone(), PutPayload::from_bytes(bytes.clone()));
            async move {
                store.put(&path, payload).await?;
                Ok(())
            }
        })
        .await
    }

    pub(super) fn check_writable(&self, key: &ObjectKey) -> Result<(), StoreError> {
        match self.inner.opened.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(StoreError::ReadOnly { object: self.object_name(key) }),
        }
    }

    pub(super) fn request(&self, operation: Operation, key: &ObjectKey, bytes: u64) -> Request {
        let (object, budget) = (self.object_name(key), self.policy().budget());
        Request { operation, object, bytes, budget }
    }

    pub(super) async fn run<T, F, Fut>(&self, request: Request, attempt: F) -> Result<T, StoreError>
    where
        F: FnMut(Arc<dyn ObjectStore>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        retry::run(&self.inner.opened.endpoint, self.policy(), request, attempt).await
    }
}

/// Waits for an answer to begin.
pub(super) async fn within<T>(
    stall: std::time::Duration,
    answer: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Failure> {
    let answer = timeout(stall, answer).await.map_err(|_| Failure::Timeout(stall))?;
    Ok(answer?)
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.description()).finish()
    }
}
