//! Caches the record of the last snapshot of a directory beside its seen file, so that sealing the
//! next one needs no request to the store.
//!
//! Without it, a snapshot of an unchanged directory gets a new record, which is merged with the
//! store's when it is shipped.

use std::path::{Path, PathBuf};

use inlay_base::durable::{self, Volatile};
use inlay_base::record;
use inlay_store::ids::SnapshotId;
use inlay_store::remote::SnapshotRecord;

/// The maximum size of a record, in bytes.
const LEN_MAX: u64 = 128 << 10;

/// Reads the record kept beside `seen`, if it is the one of `id`.
pub(super) fn read(seen: &Path, id: SnapshotId) -> Option<SnapshotRecord> {
    let bytes = record::read_bytes(&path(seen), LEN_MAX).ok().flatten()?;
    let record: SnapshotRecord = serde_json::from_slice(&bytes).ok()?;
    (record.id == id).then_some(record)
}

/// Keeps a record beside `seen`. Best effort.
pub(super) fn keep(seen: &Path, record: &SnapshotRecord) {
    let path = path(seen);
    let reason = Volatile("a cache; what a power cut leaves of it is not taken for a record");
    let kept = serde_json::to_vec(record)
        .map_err(std::io::Error::other)
        .and_then(|json| durable::write_volatile(&path, &json, reason));
    if let Err(error) = kept {
        tracing::warn!(path = %path.display(), %error, "can't keep the record of a snapshot");
    }
}

fn path(seen: &Path) -> PathBuf {
    seen.with_extension("record")
}
