//! Uploads snapshots sealed on this host: all referenced objects first, the record last. After a
//! crash at any step the next attempt continues from there.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use inlay_base::inject::{self, Step};
use inlay_store::format::packed::SegmentTable;
use inlay_store::format::{Blob, BlobIdx, FormatError, Index};
use inlay_store::ids::{BlobId, Digest, IndexDigest, SnapshotId};
use inlay_store::remote::{ObjectKey, Remote, StoreConfig};
use tokio::task::spawn_blocking;

use super::error::SnapshotError;
use super::open::open_index;
use super::tables;
use crate::state::State;

/// Maximum size of an uploaded object, in bytes: the largest blob.
const OBJECT_LEN_MAX: u64 = 1 << 32;

/// The reason a snapshot could not be uploaded.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// An object on this host is damaged or cannot be read.
    #[error("on this host: {0}")]
    Here(#[source] SnapshotError),
    /// The store failed, or cannot be reached.
    #[error("{0}")]
    Store(#[source] SnapshotError),
}

/// Result of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shipped {
    /// The snapshot is now in the store. These objects also exist on this host and are no longer
    /// needed.
    Now(Vec<ObjectKey>),
    /// The snapshot was uploaded before, and this host has none of its objects.
    Before,
}

/// Sealed snapshots waiting for upload, in a directory with the layout of a store.
#[derive(Debug, Clone)]
pub struct Waiting {
    remote: Remote,
    dir: PathBuf,
}

fn here(error: impl Into<SnapshotError>) -> ShipError {
    ShipError::Here(error.into())
}

fn store(error: impl Into<SnapshotError>) -> ShipError {
    ShipError::Store(error.into())
}

impl Waiting {
    /// Opens the directory `dir`. Must be called within a runtime.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let remote = Remote::open(&StoreConfig::new(dir.display().to_string()))?;
        Ok(Self { remote, dir: dir.to_owned() })
    }

    /// Uploads one snapshot to `far`. Every object is verified before any of its bytes are sent.
    pub async fn ship(
        &self,
        id: SnapshotId,
        far: &Remote,
        state: &State,
    ) -> Result<Shipped, ShipError> {
        let outbox_dir = &self.remote;
        let record = match outbox_dir.snapshot(&id).await {
            Ok(record) => record,
            Err(error) if error.is_not_found() => {
                let stored = far.stored_snapshot(&id).await.map_err(store)?;
                return stored.map(|_| Shipped::Before).ok_or_else(|| here(error));
            }
            Err(error) => return Err(here(error)),
        };
        let mut shipped = Vec::new();
        // A record without index adds labels to a snapshot that is already in the store.
        let index_key = ObjectKey::Index(id.index);
        if let Some(packed) = self.read(&index_key).await.map_err(here)? {
            let bytes = packed.clone();
            blocking(&index_key.file(&self.dir), move || verify_index(id.index, &bytes))
                .await
                .map_err(here)?
                .map_err(|source| here(SnapshotError::Index { id, source }))?;
            let index = open_index(outbox_dir, state, id).await.map_err(here)?;
            self.ship_blobs(id, &index, far, state, &mut shipped).await?;
            injected(Step::SealedBlobsShipped)?;
            far.put_immutable(&index_key, packed).await.map_err(store)?;
            shipped.push(index_key);
        } else if far.stored_snapshot(&id).await.map_err(store)?.is_none() {
            let path = index_key.file(&self.dir);
            return Err(here(SnapshotError::at(path)(io::ErrorKind::NotFound.into())));
        }
        far.put_or_merge_snapshot(&record).await.map_err(store)?;
        injected(Step::SealedRecordShipped)?;
        Ok(Shipped::Now(shipped))
    }

    async fn ship_blobs(
        &self,
        id: SnapshotId,
        index: &Index,
        far: &Remote,
        state: &State,
        shipped: &mut Vec<ObjectKey>,
    ) -> Result<(), ShipError> {
        for blob in 0..index.blob_count() {
            let blob = index.blob(BlobIdx(blob));
            let blob = blob.map_err(|source| here(SnapshotError::Index { id, source }))?;
            let key = ObjectKey::Blob(blob.id);
            // All other blobs are already in the store.
            let Some(bytes) = self.verified(blob.id).await.map_err(here)? else { continue };
            keep_table(state, &blob, &bytes);
            far.put_immutable(&key, bytes).await.map_err(store)?;
            shipped.push(key);
        }
        Ok(())
    }

    /// Reads a waiting blob and verifies it against its id; `None` if this host does not have it.
    async fn verified(&self, id: BlobId) -> Result<Option<Bytes>, SnapshotError> {
        let key = ObjectKey::Blob(id);
        let Some(bytes) = self.read(&key).await? else { return Ok(None) };
        let (object, hashed) = (key.file(&self.dir), bytes.clone());
        let found = blocking(&object, move || Digest::of(&hashed)).await?;
        if found != id.0 {
            let why = format!("the object is damaged: its digest is {found}");
            return Err(SnapshotError::at(object)(io::Error::other(why)));
        }
        Ok(Some(bytes))
    }

    async fn read(&self, key: &ObjectKey) -> Result<Option<Bytes>, SnapshotError> {
        match self.remote.get(key, OBJECT_LEN_MAX).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Processes the bytes of `object` on a blocking thread, because hashing takes a while.
async fn blocking<T: Send + 'static>(
    object: &Path,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SnapshotError> {
    let looked = spawn_blocking(look).await;
    looked.map_err(|error| SnapshotError::at(object)(io::Error::other(error)))
}

/// Caches the blob's chunk table, so that the next snapshot can be compared with this one without a
/// request to the store.
fn keep_table(state: &State, blob: &Blob, bytes: &[u8]) {
    let table = usize::try_from(blob.toc_offset).ok().and_then(|start| bytes.get(start..));
    if let Some(table) = table {
        tables::keep(state, blob.toc_digest, table);
    }
}

/// Verifies every segment of a packed index.
fn verify_index(id: IndexDigest, packed: &[u8]) -> Result<(), FormatError> {
    let table = SegmentTable::parse(packed, id)?;
    let have = packed.len() as u64;
    let short = FormatError::Truncated { have, want: table.packed_len() };
    if table.packed_len() != have {
        return Err(short);
    }
    let body = usize::try_from(table.body_offset()).ok().and_then(|start| packed.get(start..));
    let Some(mut body) = body else { return Err(short) };
    for place in 0..table.len() {
        let Some((stored, rest)) = body.split_at_checked(table.stored_len(place) as usize) else {
            return Err(short);
        };
        table.decode(place, stored)?;
        body = rest;
    }
    Ok(())
}

fn injected(step: Step) -> Result<(), ShipError> {
    inject::point(step).map_err(|error| here(SnapshotError::at(Path::new(step.name()))(error)))
}

/// Uploads the blobs that `index` refers to and that still wait on this host, so that a published
/// snapshot never refers to a blob missing from the store.
pub(super) async fn ship_waiting_blobs(
    remote: &Remote,
    index: &Index,
    id: SnapshotId,
) -> Result<(), SnapshotError> {
    let Some(outbox_dir) = remote.outbox_dir().filter(|outbox_dir| outbox_dir.is_used()) else {
        return Ok(());
    };
    let waiting = Waiting::open(outbox_dir.dir())?;
    for blob in 0..index.blob_count() {
        let blob =
            index.blob(BlobIdx(blob)).map_err(|source| SnapshotError::Index { id, source })?;
        // The others are already in the store, possibly since a moment ago.
        if let Some(bytes) = waiting.verified(blob.id).await? {
            remote.put_immutable(&ObjectKey::Blob(blob.id), bytes).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "ship_tests.rs"]
mod tests;
