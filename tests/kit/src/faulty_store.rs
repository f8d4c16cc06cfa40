//! An object store that fails as it is told to: faults are data, given in advance.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

const STORE: &str = "faulty";
/// A body with a fault comes in pieces of this many bytes, so that its reader has to put it together.
const PIECE: usize = 1000;

/// Which requests a fault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reads of an object or of a part of it.
    Get,
    /// Look-ups of an object's length.
    Head,
    /// Writes.
    Put,
    /// Listings.
    List,
    /// Removals.
    Delete,
}

/// How many of the requests that match have the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Only the one with this number; the first has the number 1.
    Nth(u64),
    /// As many as this, from the first one on.
    First(u64),
    /// All.
    Always,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The server answers with this HTTP status, and nothing is done.
    Status(u16),
    /// No answer ever comes.
    Stall,
    /// The connection breaks before the request is seen.
    ConnectionReset,
    /// The request is carried out, but the connection breaks before its answer.
    LostAnswer,
    /// The body breaks off after this many bytes, and the reader is told.
    CutBody(usize),
    /// The body ends after this many bytes as if that were all.
    ShortBody(usize),
    /// The body stops coming after this many bytes.
    StallBody(usize),
    /// This many bytes too many come.
    LongBody(usize),
    /// One bit is wrong in the byte at this place.
    FlipByte(usize),
    /// Every byte is wrong, their number is right.
    WrongBytes,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// On which requests.
    pub on: Operation,
    /// Only on objects whose path contains this. Empty: on all.
    pub key: String,
    /// On how many of them.
    pub times: Times,
    /// What happens.
    pub what: What,
}

/// Another store, with faults. Counts all requests.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Mutex<Vec<Planned>>,
    requests: AtomicU64,
}

#[derive(Debug)]
struct Planned {
    fault: Fault,
    matched: u64,
}

impl FaultyStore {
    /// Puts faults on top of `inner`. Where several would happen at once, the first of them does.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Vec<Fault>) -> Self {
        let store = Self { inner, faults: Mutex::default(), requests: AtomicU64::new(0) };
        store.set_faults(faults);
        store
    }

    /// Plans other faults instead, and counts matches from the beginning.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        *self.faults.lock() =
            faults.into_iter().map(|fault| Planned { fault, matched: 0 }).collect();
    }

    /// How many requests there have been.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn fault(&self, on: Operation, at: &Path) -> Option<What> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut hit = None;
        for planned in self.faults.lock().iter_mut() {
            let Fault { key, times, what, .. } = &planned.fault;
            if planned.fault.on != on || !at.as_ref().contains(key.as_str()) {
                continue;
            }
            planned.matched += 1;
            let happens = match *times {
                Times::Nth(nth) => planned.matched == nth,
                Times::First(count) => planned.matched <= count,
                Times::Always => true,
            };
            if happens {
                hit = hit.or(Some(*what));
            }
        }
        hit
    }

    /// Carries `request` out, or not, as `what` says. Faults of bodies do not concern it.
    async fn disturbed<T>(
        what: Option<What>,
        at: &Path,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match what {
            Some(What::Status(status)) => Err(answered(status, at)),
            Some(What::Stall) => std::future::pending().await,
            Some(What::ConnectionReset) => Err(reset()),
            Some(What::LostAnswer) => {
                request.await?;
                Err(reset())
            }
            _ => request.await,
        }
    }
}

/// The error that the library makes of such a status.
fn answered(status: u16, at: &Path) -> Error {
    let path = at.to_string();
    let source = format!("injected status {status}").into();
    match status {
        401 => Error::Unauthenticated { path, source },
        403 => Error::PermissionDenied { path, source },
        404 => Error::NotFound { path, source },
        409 => Error::AlreadyExists { path, source },
        412 => Error::Precondition { path, source },
        501 => Error::NotImplemented {
            operation: "injected".to_owned(),
            implementer: STORE.to_owned(),
        },
        _ => Error::Generic { store: STORE, source },
    }
}

fn reset() -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "injected reset");
    let source = HttpError::new(HttpErrorKind::Interrupted, source);
    Error::Generic { store: STORE, source: source.into() }
}

/// What comes of `body` with this fault, in pieces; whether more comes at its end is in the last one.
fn spoiled(body: &Bytes, what: What) -> BoxStream<'static, Result<Bytes>> {
    let mut bytes = body.to_vec();
    match what {
        What::CutBody(at) | What::ShortBody(at) | What::StallBody(at) => bytes.truncate(at),
        What::LongBody(extra) => bytes.resize(bytes.len() + extra, 0xee),
        What::FlipByte(at) => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
        }
        What::WrongBytes => bytes.iter_mut().for_each(|byte| *byte = !*byte),
        What::Status(_) | What::Stall | What::ConnectionReset | What::LostAnswer => {}
    }
    let pieces: Vec<_> =
        bytes.chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let pieces = stream::iter(pieces);
    match what {
        What::CutBody(_) => pieces.chain(stream::iter([Err(reset())])).boxed(),
        What::StallBody(_) => pieces.chain(stream::pending()).boxed(),
        _ => pieces.boxed(),
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE} {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let what = self.fault(Operation::Put, at);
        Self::disturbed(what, at, self.inner.put_opts(at, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let what = self.fault(Operation::Put, at);
        Self::disturbed(what, at, self.inner.put_multipart_opts(at, opts)).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let what = self.fault(if head { Operation::Head } else { Operation::Get }, at);
        let answer = Self::disturbed(what, at, self.inner.get_opts(at, options)).await?;
        let Some(what) = what.filter(|_| !head) else { return Ok(answer) };
        let (meta, range) = (answer.meta.clone(), answer.range.clone());
        let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
        let payload = GetResultPayload::Stream(spoiled(&answer.bytes().await?, what));
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        // Only the deletion of single objects is disturbed: nothing here deletes more at once.
        let mut locations = locations;
        let first = locations.next().now_or_never().flatten();
        let Some(Ok(at)) = first else { return self.inner.delete_stream(locations) };
        let what = self.fault(Operation::Delete, &at);
        let rest = stream::iter([Ok(at.clone())]).chain(locations).boxed();
        match what {
            Some(What::Status(status)) => stream::iter([Err(answered(status, &at))]).boxed(),
            Some(What::Stall) => stream::pending().boxed(),
            Some(What::ConnectionReset) => stream::iter([Err(reset())]).boxed(),
            Some(What::LostAnswer) => {
                self.inner.delete_stream(rest).and_then(async |_| Err(reset())).boxed()
            }
            _ => self.inner.delete_stream(rest),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let at = prefix.cloned().unwrap_or_default();
        let entries = self.inner.list(prefix);
        match self.fault(Operation::List, &at) {
            Some(What::Status(status)) => stream::iter([Err(answered(status, &at))]).boxed(),
            Some(What::Stall) => stream::pending().boxed(),
            Some(What::ConnectionReset | What::LostAnswer) => stream::iter([Err(reset())]).boxed(),
            // A listing's places are its entries.
            Some(What::CutBody(at)) => entries.take(at).chain(stream::iter([Err(reset())])).boxed(),
            Some(What::StallBody(at)) => entries.take(at).chain(stream::pending()).boxed(),
            _ => entries,
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = prefix.cloned().unwrap_or_default();
        let what = self.fault(Operation::List, &at);
        Self::disturbed(what, &at, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let what = self.fault(Operation::Put, to);
        Self::disturbed(what, to, self.inner.copy_opts(from, to, options)).await
    }
}
