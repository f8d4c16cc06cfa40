//! Opens a snapshot's index: mapped from the state directory, fetched there the first time.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use futures::stream::{self, StreamExt, TryStreamExt};
use inlay_store::format::packed::{PACKED_HEADER_LEN, SegmentTable};
use inlay_store::format::{FormatError, Index};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::{ObjectKey, Remote, StoreError};
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use crate::state::State;
use crate::trace::clock;

/// Bytes of a packed index that are asked for first: all of it for a snapshot of some 300,000 files, so
/// that it takes one round trip.
const FIRST_LEN: u64 = 4 << 20;
/// Bytes of a packed index that are asked for at a time.
const BATCH_LEN: u64 = 2 << 20;
/// Requests under way at once.
const BATCHES: usize = 4;

/// The index of snapshot `id`. If the state does not hold it yet, it is fetched, verified segment by
/// segment and kept. Memory stays at a few MiB whatever its size.
///
/// A copy that the state holds is hashed before this process first uses it, because disks forget, and
/// again when the file has changed. One that is damaged is fetched again.
pub async fn open_index(
    remote: &Remote,
    state: &State,
    id: SnapshotId,
) -> Result<Index, SnapshotError> {
    open_index_watched(remote, state, id, &mut IndexFetch::default()).await
}

/// How an index was fetched. Moments are nanoseconds of the monotonic clock; 0: not come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexFetch {
    /// The store was asked.
    pub sent: u64,
    /// The first of it was there.
    pub first: u64,
    /// All of it was there, checked and kept.
    pub received: u64,
    /// Its stored bytes.
    pub bytes: u64,
}

/// The same, and `seen` says how it was fetched, if it was.
pub async fn open_index_watched(
    remote: &Remote,
    state: &State,
    id: SnapshotId,
    seen: &mut IndexFetch,
) -> Result<Index, SnapshotError> {
    let path = index_path(state, id);
    let index = match local(state, &path, id) {
        Ok(Some(index)) => index,
        // A version or a feature of a newer inlay: fetching it again would give the same.
        Err(source @ (FormatError::Version { .. } | FormatError::Features(_))) => {
            return Err(SnapshotError::Index { id, source });
        }
        not_usable => {
            if !matches!(not_usable, Err(FormatError::Io { .. })) {
                tracing::warn!(
                    path = %path.display(),
                    "the local copy of the index is damaged and is fetched again"
                );
            }
            seen.sent = clock::now();
            fetch(remote, state, &path, id, seen).await?;
            seen.received = clock::now();
            let file = fs::File::open(&path).map_err(SnapshotError::at(&path))?;
            // Every segment was verified on its way into the file.
            state.verified().remember(&file, id.index).map_err(SnapshotError::at(&path))?;
            Index::of_file(&file, &path).map_err(|source| SnapshotError::Index { id, source })?
        }
    };
    if index.kind() != id.kind {
        return Err(SnapshotError::Kind { id, found: index.kind() });
    }
    Ok(index)
}

/// The copy in the state; `None` if it is another index than it should be.
fn local(state: &State, path: &Path, id: SnapshotId) -> Result<Option<Index>, FormatError> {
    let at = |source| FormatError::Io { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(at)?;
    // The header first: what is of a newer inlay is said to be so.
    let index = Index::of_file(&file, path)?;
    let digest = state.verified().digest(&file).map_err(at)?;
    Ok((digest == id.index).then_some(index))
}

/// Where the index of `id` is kept.
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
    // Not synced: what a crash leaves of it is hashed before it is used, and fetched again.
    file.persist(path).map_err(|error| SnapshotError::at(path)(error.error))?;
    Ok(())
}

/// Some segments, one after another.
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

/// Gives a finished index its name, so that a crash leaves either nothing or the whole.
pub(super) fn keep(file: NamedTempFile, path: &Path) -> Result<(), SnapshotError> {
    file.as_file().sync_all().map_err(SnapshotError::at(path))?;
    file.persist(path).map_err(|error| SnapshotError::at(path)(error.error))?;
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(SnapshotError::at(parent))
}
