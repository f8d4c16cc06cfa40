//! Learns which chunks snapshots hold already, from their blobs' tables.

use futures::stream::{self, StreamExt, TryStreamExt};
use inlay_store::format::{Blob, BlobIdx, FormatError};
use inlay_store::ids::SnapshotId;
use inlay_store::pack::{KnownChunks, TOC_LEN_MAX, TocGroup, read_toc};
use inlay_store::remote::{ObjectKey, Remote};

use super::error::SnapshotError;
use super::open::open_index;
use crate::state::State;

/// Tables under way at once.
const REQUESTS: usize = 4;

/// The chunks of all blobs that `snapshots` refer to, those of the first snapshot first; `chunks_max`
/// of them at most. Every table is verified by the digest that the snapshot's index has for it.
pub async fn known_chunks(
    remote: &Remote,
    state: &State,
    snapshots: &[SnapshotId],
    chunks_max: usize,
) -> Result<KnownChunks, SnapshotError> {
    let mut known = KnownChunks::new();
    for id in snapshots {
        let index = open_index(remote, state, *id).await?;
        let blobs = (0..index.blob_count())
            .map(|blob| index.blob(BlobIdx(blob)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| SnapshotError::Index { id: *id, source })?;
        let tables = blobs
            .into_iter()
            .map(|blob| async move { Ok::<_, SnapshotError>((blob, table(remote, blob).await?)) });
        let mut tables = stream::iter(tables).buffered(REQUESTS);
        while let Some((blob, toc)) = tables.try_next().await? {
            known.add_blob(blob, &toc, chunks_max);
        }
    }
    if known.left_out() > 0 {
        tracing::warn!(
            known = known.len(),
            left_out = known.left_out(),
            "there are more known chunks than are compared with; some may be stored again"
        );
    }
    Ok(known)
}

async fn table(remote: &Remote, blob: Blob) -> Result<Vec<TocGroup>, SnapshotError> {
    let wrong = |source| SnapshotError::Toc { blob: blob.id.to_string(), source };
    let len = blob.size - blob.toc_offset;
    if len > TOC_LEN_MAX {
        let limit = TOC_LEN_MAX;
        return Err(wrong(FormatError::TooLarge { what: "table of chunks", found: len, limit }));
    }
    let key = ObjectKey::Blob(blob.id);
    let range = blob.toc_offset..blob.size;
    let bytes = remote.get_range(&key, range, remote.policy().budget()).await?;
    read_toc(&bytes, blob.toc_offset, blob.toc_digest).map_err(wrong)
}
