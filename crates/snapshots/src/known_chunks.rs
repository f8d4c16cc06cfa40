//! Collects the chunks that existing snapshots hold, from the chunk tables of their blobs.
//!
//! A snapshot with damaged objects is not built upon; its parent takes over. So importing its
//! source again packs the same blobs as the first import, and rewrites them.
//!
//! Tables are cached on this host, for sealing snapshots without access to the store.

use futures::stream::{self, StreamExt, TryStreamExt};
use inlay_store::format::{Blob, BlobIdx, FormatError};
use inlay_store::ids::{BlobId, Digest, SnapshotId};
use inlay_store::pack::{KnownChunks, TOC_LEN_MAX, TocGroup, read_toc};
use inlay_store::remote::{ObjectKey, Remote};

use super::error::SnapshotError;
use super::open::open_index;
use super::tables;
use crate::state::State;

/// Maximum blobs read concurrently.
const REQUESTS: usize = 4;
/// Maximum ancestors visited past damaged snapshots.
const PARENTS_MAX: usize = 64;

/// Verification of a blob before its chunks count as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobCheck {
    /// Its chunk table and its size.
    Table,
    /// All of its bytes.
    Whole,
}

/// Handling of an unreadable snapshot or table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Fail.
    Fail,
    /// Its chunks count as unknown, and may be stored again.
    Skip,
}

/// Returns the chunks of all blobs that `snapshots` refer to, in their order, at most `chunks_max`.
/// Every table is verified against its digest in the snapshot's index.
pub async fn known_chunks(
    remote: &Remote,
    state: &State,
    snapshots: &[SnapshotId],
    chunks_max: usize,
    unreadable: Unreadable,
) -> Result<KnownChunks, SnapshotError> {
    match unreadable {
        Unreadable::Fail => {
            known_chunks_checked(remote, state, snapshots, chunks_max, BlobCheck::Table).await
        }
        Unreadable::Skip => known_here(remote, state, snapshots, chunks_max).await,
    }
}

/// Like [`known_chunks`] with unreadable snapshots and tables skipped. Prefers tables cached on
/// this host.
async fn known_here(
    remote: &Remote,
    state: &State,
    snapshots: &[SnapshotId],
    chunks_max: usize,
) -> Result<KnownChunks, SnapshotError> {
    let mut known = KnownChunks::new();
    for id in snapshots {
        let index = match open_index(remote, state, *id).await {
            Ok(index) => index,
            Err(error) => {
                tracing::debug!(snapshot = %id, %error, "not compared with");
                continue;
            }
        };
        for blob in (0..index.blob_count()).map(|blob| index.blob(BlobIdx(blob))) {
            let blob = blob.map_err(|source| SnapshotError::Index { id: *id, source })?;
            match kept_table(state, blob) {
                Some(toc) => known.add_blob(blob, &toc, chunks_max),
                None => match table(remote, state, blob).await {
                    Ok(toc) => known.add_blob(blob, &toc, chunks_max),
                    Err(error) => tracing::debug!(blob = %blob.id, %error, "not compared with"),
                },
            }
        }
    }
    warn_of_left_out(&known);
    Ok(known)
}

/// Reads a table cached on this host. Removes it if it is damaged.
fn kept_table(state: &State, blob: Blob) -> Option<Vec<TocGroup>> {
    let kept = tables::read(state, blob.toc_digest)?;
    let read = read_toc(&kept, blob.toc_offset, blob.toc_digest).ok();
    if read.is_none() {
        tables::forget(state, blob.toc_digest);
    }
    read
}

fn warn_of_left_out(known: &KnownChunks) {
    if known.left_out() > 0 {
        tracing::warn!(
            known = known.len(),
            left_out = known.left_out(),
            "too many known chunks to compare with; some may be stored again"
        );
    }
}

/// Like [`known_chunks`], with each blob verified as `check` requires.
pub async fn known_chunks_checked(
    remote: &Remote,
    state: &State,
    snapshots: &[SnapshotId],
    chunks_max: usize,
    check: BlobCheck,
) -> Result<KnownChunks, SnapshotError> {
    let mut known = KnownChunks::new();
    for id in snapshots {
        for (blob, toc) in whole_or_ancestor(remote, state, *id, check).await? {
            known.add_blob(blob, &toc, chunks_max);
        }
    }
    warn_of_left_out(&known);
    Ok(known)
}

/// Returns the blobs of the snapshot `id`, or of its nearest ancestor without damage.
async fn whole_or_ancestor(
    remote: &Remote,
    state: &State,
    id: SnapshotId,
    check: BlobCheck,
) -> Result<Vec<(Blob, Vec<TocGroup>)>, SnapshotError> {
    let mut next = id;
    for _ in 0..PARENTS_MAX {
        let damage = match blobs_of(remote, state, next, check).await? {
            Ok(blobs) => return Ok(blobs),
            Err(damage) => damage,
        };
        let parent = match remote.snapshot(&next).await {
            Ok(record) => record.parent,
            Err(error) if error.is_not_found() || error.is_of_one_object() => None,
            Err(error) => return Err(error.into()),
        };
        tracing::warn!(snapshot = %next, %damage, "its contents are stored again");
        let Some(parent) = parent else { break };
        next = parent;
    }
    Ok(Vec::new())
}

/// Returns the blobs of a snapshot with their tables, or the first damage found.
async fn blobs_of(
    remote: &Remote,
    state: &State,
    id: SnapshotId,
    check: BlobCheck,
) -> Result<Result<Vec<(Blob, Vec<TocGroup>)>, SnapshotError>, SnapshotError> {
    let index = match open_index(remote, state, id).await {
        Err(error) if is_damage(&error) => return Ok(Err(error)),
        index => index?,
    };
    let blobs = (0..index.blob_count())
        .map(|blob| index.blob(BlobIdx(blob)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| SnapshotError::Index { id, source })?;
    let tables = blobs.into_iter().map(|blob| async move {
        let table = match check {
            BlobCheck::Table => table(remote, state, blob).await,
            BlobCheck::Whole => whole(remote, blob).await,
        };
        Ok::<_, SnapshotError>((blob, table?))
    });
    match stream::iter(tables).buffered(REQUESTS).try_collect().await {
        Err(error) if is_damage(&error) => Ok(Err(error)),
        tables => tables.map(Ok),
    }
}

/// Whether storing the objects again helps: one is missing or damaged.
fn is_damage(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Store(error) => error.is_damage() || error.is_not_found(),
        SnapshotError::Index { source, .. } => !matches!(
            source,
            FormatError::Version { .. } | FormatError::Features(_) | FormatError::Io { .. }
        ),
        SnapshotError::Toc { .. } | SnapshotError::Blob { .. } | SnapshotError::Unknown { .. } => {
            true
        }
        _ => false,
    }
}

async fn table(remote: &Remote, state: &State, blob: Blob) -> Result<Vec<TocGroup>, SnapshotError> {
    let wrong = |source| SnapshotError::Toc { blob: blob.id.to_string(), source };
    let len = blob.size - blob.toc_offset;
    if len > TOC_LEN_MAX {
        let limit = TOC_LEN_MAX;
        return Err(wrong(FormatError::TooLarge { what: "table of chunks", found: len, limit }));
    }
    let key = ObjectKey::Blob(blob.id);
    let range = blob.toc_offset..blob.size;
    let bytes = remote.get_range(&key, range, remote.policy().budget()).await?;
    let toc = read_toc(&bytes, blob.toc_offset, blob.toc_digest).map_err(wrong)?;
    tables::keep(state, blob.toc_digest, &bytes);
    Ok(toc)
}

async fn whole(remote: &Remote, blob: Blob) -> Result<Vec<TocGroup>, SnapshotError> {
    let bytes = remote.get(&ObjectKey::Blob(blob.id), blob.size).await?;
    // Hashing takes a while, so keep it off the threads that drive network I/O.
    let checked = tokio::task::spawn_blocking(move || {
        if BlobId(Digest::of(&bytes)) != blob.id {
            return Err(SnapshotError::Blob { blob: blob.id });
        }
        let table = usize::try_from(blob.toc_offset).ok().and_then(|start| bytes.get(start..));
        read_toc(table.unwrap_or_default(), blob.toc_offset, blob.toc_digest)
            .map_err(|source| SnapshotError::Toc { blob: blob.id.to_string(), source })
    });
    checked.await.unwrap_or(Err(SnapshotError::Blob { blob: blob.id }))
}
