//! The client of a store, which the rest of the program uses.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::time::{Instant, timeout};

use super::body::{self, Arrivals, Unwatched};
use super::config::StoreConfig;
use super::endpoint::Endpoint;
use super::error::StoreError;
use super::failure::Failure;
use super::immutable::Tags;
use super::key::ObjectKey;
use super::open::{self, Access, Opened, StorePlace};
use super::outbox_dir::{OutboxDir, StoreOnly};
use super::retry::{self, Operation, RetriedRequest, RetryBudget, RetryPolicy};

/// A store. Cheap to clone; all clones share connections and credentials.
///
/// Every call is retried within its budget, and always ends with a result or an error that names
/// the object. Calls need a tokio runtime with time and I/O enabled.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<RemoteInner>,
}

struct RemoteInner {
    opened: Opened,
    policy: RetryPolicy,
    tags: Tags,
}

/// The body of an object.
pub(super) enum WholeObject {
    Bytes(Bytes),
    /// Longer than the caller accepts: its length in bytes.
    TooLong(u64),
}

/// Where to look for an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// In the outbox directory, if there is one, then in the store.
    OutboxFirst,
    /// Only in the store, for reads that decide about a write to it.
    StoreOnly,
}

impl Reach {
    pub(super) fn options(self) -> GetOptions {
        let mut options = GetOptions::new();
        if self == Self::StoreOnly {
            options.extensions.insert(StoreOnly);
        }
        options
    }
}

impl Remote {
    /// Opens a store. Creates a directory store if it is missing; sends no request to a service.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        Ok(Self::with(open::open(config)?, config.retry))
    }

    /// Wraps an existing client. `description` replaces its URL in messages.
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
            disk: StorePlace::Elsewhere,
            outbox_dir: None,
        };
        Self::with(opened, policy)
    }

    fn with(opened: Opened, policy: RetryPolicy) -> Self {
        Self { inner: Arc::new(RemoteInner { opened, policy, tags: Tags::default() }) }
    }

    /// Returns the URL of the store, for messages.
    pub fn description(&self) -> &str {
        &self.inner.opened.description
    }

    /// Returns whether the store is a local directory, where reads need no request.
    pub fn is_directory(&self) -> bool {
        self.inner.opened.disk == StorePlace::Here
    }

    /// Returns the findings about the store's entity tags.
    pub(super) fn tags(&self) -> &Tags {
        &self.inner.tags
    }

    /// Returns the outbox directory, which is read before the store, if one is configured.
    pub fn outbox_dir(&self) -> Option<&OutboxDir> {
        self.inner.opened.outbox_dir.as_ref()
    }

    /// Returns the retry policy of this store.
    pub fn policy(&self) -> &RetryPolicy {
        &self.inner.policy
    }

    /// Returns the full name of an object: the URL of the store and the path in it.
    pub fn object_name(&self, key: &ObjectKey) -> String {
        self.full_name(&key.path(&Path::default()))
    }

    pub(super) fn full_name(&self, below_root: &Path) -> String {
        format!("{}/{below_root}", self.description())
    }

    pub(super) fn root(&self) -> &Path {
        &self.inner.opened.root
    }

    /// Reads a whole object. Fails, without reading it, if it is longer than `len_max` bytes.
    pub async fn get(&self, key: &ObjectKey, len_max: u64) -> Result<Bytes, StoreError> {
        match self.get_whole(key, len_max, Reach::OutboxFirst).await? {
            (_, WholeObject::Bytes(bytes)) => Ok(bytes),
            (_, WholeObject::TooLong(len)) => {
                Err(StoreError::TooLong { object: self.object_name(key), len, len_max })
            }
        }
    }

    /// Reads a whole object and its metadata. Does not read the body if it is longer than `len_max`
    /// bytes.
    pub(super) async fn get_whole(
        &self,
        key: &ObjectKey,
        len_max: u64,
        reach: Reach,
    ) -> Result<(ObjectMeta, WholeObject), StoreError> {
        let path = key.path(self.root());
        let policy = *self.policy();
        // `len_max` may be far larger than the object: once the length is known, derive the time
        // limits from it.
        let (began, known_len) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let known = Some(Arc::clone(&known_len));
        let request = RetriedRequest { known, ..self.request(Operation::Get, key, len_max) };
        let left = |len| (began + policy.limit(len)).saturating_duration_since(Instant::now());
        self.run(request, |store| {
            let (path, left, known_len) = (path.clone(), &left, &known_len);
            async move {
                let stall = policy.stall.min(left(known_len.load(Ordering::Relaxed)));
                let answer = within(stall, store.get_opts(&path, reach.options())).await?;
                let meta = answer.meta.clone();
                let len = meta.size;
                if len > len_max {
                    return Ok((meta, WholeObject::TooLong(len)));
                }
                known_len.store(len, Ordering::Relaxed);
                let limit = policy.attempt_limit(len).min(left(len));
                let bytes = timeout(limit, body::read(answer, len, policy.stall, &Unwatched)).await;
                let bytes = bytes.map_err(|_| Failure::Timeout(limit))??;
                Ok((meta, WholeObject::Bytes(bytes)))
            }
        })
        .await
    }

    /// Reads exactly the bytes of `range`. Fails if the object is too short.
    pub async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        budget: RetryBudget,
    ) -> Result<Bytes, StoreError> {
        self.get_range_watched(key, range, budget, Arc::new(Unwatched)).await
    }

    /// Like [`Self::get_range`], and reports progress to `arrivals`. Bytes that are requested again
    /// in a retry are reported again.
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
        let request = RetriedRequest { budget, ..self.request(Operation::GetRange, key, want) };
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

    /// Returns the first `len` bytes of an object, or all of a shorter one, and its total length.
    /// Takes one request instead of two when the length is unknown.
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

    /// Returns the length of an object in bytes, or `None` if it does not exist.
    pub async fn len(&self, key: &ObjectKey) -> Result<Option<u64>, StoreError> {
        self.len_within(key, Reach::OutboxFirst).await
    }

    async fn len_within(&self, key: &ObjectKey, reach: Reach) -> Result<Option<u64>, StoreError> {
        let path = key.path(self.root());
        let head = self
            .run(self.request(Operation::Head, key, 0), |store| {
                let path = path.clone();
                let options = reach.options().with_head(true);
                async move { Ok(store.get_opts(&path, options).await?.meta.size) }
            })
            .await;
        match head {
            Err(error) if error.is_not_found() => Ok(None),
            head => head.map(Some),
        }
    }

    /// Writes an object, replacing an existing one.
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

    /// Fails if the store is read-only.
    pub(super) fn check_writable(&self, key: &ObjectKey) -> Result<(), StoreError> {
        match self.inner.opened.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(StoreError::ReadOnly { object: self.object_name(key) }),
        }
    }

    pub(super) fn request(
        &self,
        operation: Operation,
        key: &ObjectKey,
        bytes: u64,
    ) -> RetriedRequest {
        let (object, budget) = (self.object_name(key), self.policy().budget());
        RetriedRequest { operation, object, bytes, known: None, budget }
    }

    /// Sends a request with retries.
    pub(super) async fn run<T, F, Fut>(
        &self,
        request: RetriedRequest,
        attempt: F,
    ) -> Result<T, StoreError>
    where
        F: FnMut(Arc<dyn ObjectStore>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        retry::run(&self.inner.opened.endpoint, self.policy(), request, attempt).await
    }
}

/// Waits at most `stall` for a response to start.
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
