//! Opens a snapshot's index, memory-mapped from the state directory and fetched there on first use.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use futures::stream::{self, StreamExt, TryStreamExt};
use inlay_base::durable::{self, Volatile};
use inlay_store::format::packed::{PACKED_HEADER_LEN, SegmentTable};
use inlay_store::format::{FormatError, Index};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::{ObjectKey, Remote, StoreError};
use inlay_trace::clock;
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use crate::state::State;

/// Bytes of a packed index in the first request: the whole index of a snapshot of some 300,000
/// files, which then takes one round trip.
const FIRST_LEN: u64 = 4 << 20;
/// Bytes of a packed index per further request.
const BATCH_LEN: u64 = 2 << 20;
/// Maximum concurrent requests.
const BATCHES: usize = 4;

/// Opens the index of snapshot `id`. If the state directory does not have it yet, it is fetched,
/// verified segment by segment, and kept. Memory use stays at a few MiB for any size.
///
/// A local copy is hashed before its first use in this process, because disks can corrupt data, and
/// again whenever the file changes. A damaged copy is fetched again.
pub async fn open_index(
    remote: &Remote,
    state: &State,
    id: SnapshotId,
) -> Result<Index, SnapshotError> {
    open_index_watched(remote, state, id, &mut IndexFetch::default()).await
}

/// Progress of fetching an index. Times are nanoseconds of the monotonic clock; 0 if not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexFetch {
    /// The request was sent.
    pub sent: u64,
    /// The first response arrived.
    pub first: u64,
    /// The whole index was received, verified and stored.
    pub received: u64,
    /// Packed size in bytes.
    pub bytes: u64,
}

/// Like [`open_index`]; records in `seen` how the index was fetched, if it was.
pub async fn open_index_watched(
    remote: &Remote,
    state: &State,
    id: SnapshotId,
    seen: &mut IndexFetch,
) -> Result<Index, SnapshotError> {
    let path = index_path(state, id);
    let index = match local(state, &path, id) {
        Ok(Some(index)) => index,
        // Written by a newer inlay: fetching it again would return the same bytes.
        Err(source @ (FormatError::Version { .. } | FormatError::Features(_))) => {
            return Err(SnapshotError::Index { id, source });
        }
        not_usable => {
            if !matches!(not_usable, Err(FormatError::Io { .. })) {
                tracing::warn!(
                    path = %path.display(),
                    "the local copy of the index is damaged; fetching it again"
                );
            }
            seen.sent = clock::now();
            fetch(remote, state, &path, id, seen).await?;
            seen.received = clock::now();
            let file = fs::File::open(&path).map_err(SnapshotError::at(&path))?;
            // Every segment was verified before it was written to the file.
            state.verified().remember(&file, id.index).map_err(SnapshotError::at(&path))?;
            Index::of_file(&file, &path).map_err(|source| SnapshotError::Index { id, source })?
        }
    };
    if index.kind() != id.kind {
        return Err(SnapshotError::Kind { id, found: index.kind() });
    }
    Ok(index)
}

/// Opens the local copy; `None` if it does not match its id.
fn local(state: &State, path: &Path, id: SnapshotId) -> Result<Option<Index>, FormatError> {
    let at = |source| FormatError::Io { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(at)?;
    // Parse the header first, so that an index of a newer version is reported as such.
    let index = Index::of_file(&file, path)?;
    let digest = state.verified().digest(&file).map_err(at)?;
    Ok((digest == id.index).then_some(index))
}

/// Path of the local copy of the index of `id`.
pub(super) fn index_path(state: &State, id: SnapshotId) -> PathBuf {
    state.indexes().join(id.index.to_string())
}

async fn fetch(
    remote: &Remote,
    state: &State,
    path: &Path,
    id: SnapshotId,
    seen: &mut IndexFetch,
) -> Result<(), SnapshotError> {
    let key = ObjectKey::Index(id.index);
    let wrong = |source| SnapshotError::Index { id, source };
    let (mut head, packed_len) = match remote.get_start(&key, FIRST_LEN).await {
        Err(error) if error.is_not_found() => {
            return Err(SnapshotError::Unknown {
                reference: id.to_string(),
                store: remote.description().to_owned(),
            });
        }
        start => start?,
    };
    (seen.first, seen.bytes) = (clock::now(), packed_len);
    let budget = || remote.policy().budget();
    let table = match SegmentTable::parse(&head, id.index) {
        Err(FormatError::Truncated { want, .. })
            if want > FIRST_LEN && want <= packed_len && want > PACKED_HEADER_LEN =>
        {
            head = remote.get_range(&key, 0..want, budget()).await?;
            SegmentTable::parse(&head, id.index)
        }
        other => other,
    }
    .map_err(wrong)?;
    if table.packed_len() != packed_len {
        return Err(wrong(FormatError::Truncated { have: packed_len, want: table.packed_len() }));
    }
    let scratch = state.scratch();
    let mut file = NamedTempFile::new_in(scratch).map_err(SnapshotError::at(scratch))?;
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    let fetches = batches(&table).into_iter().map(|batch| {
        let (key, head) = (&key, &head);
        async move {
            let range = batch.start..batch.end;
            let here = usize::try_from(range.end).ok().filter(|end| *end <= head.len());
            let bytes = match here {
                Some(end) => head.slice(usize::try_from(range.start).unwrap_or(end)..end),
                None => remote.get_range(key, range, remote.policy().budget()).await?,
            };
            Ok::<_, StoreError>((batch, bytes))
        }
    });
    let mut fetched = stream::iter(fetches).buffered(BATCHES);
    while let Some((batch, bytes)) = fetched.try_next().await? {
        write_batch(&table, &batch, &bytes, &mut out, path).map_err(wrong)?;
    }
    out.flush().map_err(SnapshotError::at(path))?;
    drop(out);
    let reason = Volatile("an index is hashed before it is used, and fetched again if need be");
    durable::publish_volatile(file, path, reason).map_err(SnapshotError::at(path))
}

/// Consecutive segments fetched in one request.
struct Batch {
    segments: std::ops::Range<usize>,
    start: u64,
    end: u64,
}

fn batches(table: &SegmentTable) -> Vec<Batch> {
    let mut out: Vec<Batch> = Vec::new();
    let mut offset = table.body_offset();
    for place in 0..table.len() {
        let len = u64::from(table.stored_len(place));
        match out.last_mut() {
            Some(last) if last.end - last.start + len <= BATCH_LEN => {
                last.end += len;
                last.segments.end += 1;
            }
            _ => out.push(Batch { segments: place..place + 1, start: offset, end: offset + len }),
        }
        offset += len;
    }
    out
}

fn write_batch(
    table: &SegmentTable,
    batch: &Batch,
    mut bytes: &[u8],
    out: &mut impl Write,
    path: &Path,
) -> Result<(), FormatError> {
    for place in batch.segments.clone() {
        let len = table.stored_len(place) as usize;
        let (stored, rest) = bytes
            .split_at_checked(len)
            .ok_or(FormatError::Truncated { have: bytes.len() as u64, want: len as u64 })?;
        let raw = table.decode(place, stored)?;
        out.write_all(&raw).map_err(|source| FormatError::Io { path: path.to_owned(), source })?;
        bytes = rest;
    }
    Ok(())
}

/// Publishes a finished index atomically: a crash leaves either none or a complete one.
pub(super) fn keep(file: NamedTempFile, path: &Path) -> Result<(), SnapshotError> {
    durable::publish(file, path).map_err(SnapshotError::at(path))
}
