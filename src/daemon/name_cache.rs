//! Resolves names of snapshots. Names in the host's mount table are remembered on disk, so that the
//! host can mount them at boot while its store is unreachable.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use inlay_base::durable;
use inlay_snapshots::state::State;
use inlay_snapshots::{Reference, SnapshotError, resolve};
use inlay_store::ids::{Digest, SnapshotId};
use inlay_store::remote::Remote;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::api::{MountOrigin, StoreRef};
use super::error::DaemonError;

/// Deadline of the store for a name that is remembered.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Maximum length of a file: a full id and a newline.
const LEN_MAX: u64 = 128;

/// Resolves `reference` in a store. For a mount of the mount table, falls back to the remembered
/// snapshot if the store does not answer in time.
pub(super) async fn named(
    state: &State,
    remote: &Remote,
    store: &StoreRef,
    reference: &str,
    origin: MountOrigin,
) -> Result<SnapshotId, DaemonError> {
    let is_id = matches!(Reference::parse(reference)?, Reference::Id(_));
    if origin == MountOrigin::Command || is_id {
        return Ok(resolve(remote, reference).await?);
    }
    let path = path_of(state, store, reference);
    let Some(last) = on_disk({
        let path = path.clone();
        move || recall(&path)
    })
    .await?
    else {
        let id = resolve(remote, reference).await?;
        on_disk(move || remember(&path, id)).await?;
        return Ok(id);
    };
    let why = match timeout(ASK_WITHIN, resolve(remote, reference)).await {
        Ok(Ok(id)) if id == last => return Ok(id),
        Ok(Ok(id)) => {
            on_disk(move || remember(&path, id)).await?;
            return Ok(id);
        }
        // A definite answer of the store; no fallback.
        Ok(Err(
            error @ (SnapshotError::Unknown { .. }
            | SnapshotError::BadReference { .. }
            | SnapshotError::Ambiguous { .. }),
        )) => return Err(error.into()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store did not answer within {ASK_WITHIN:?}"),
    };
    tracing::warn!(reference, snapshot = %last, why, "using the last known snapshot of the name");
    Ok(last)
}

/// Runs disk I/O on a blocking thread.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DaemonError> {
    spawn_blocking(work).await.map_err(|_| DaemonError::Panicked)
}

fn path_of(state: &State, store: &StoreRef, reference: &str) -> PathBuf {
    let url = store.url.as_deref().unwrap_or_default();
    let key = Digest::of(format!("{url}\0{reference}").as_bytes()).to_hex();
    state.root().join("names").join(key)
}

/// Returns the remembered snapshot; `None` if there is none or its file is damaged, so that the
/// store is asked.
fn recall(path: &Path) -> Option<SnapshotId> {
    let mut text = String::new();
    File::open(path).ok()?.take(LEN_MAX).read_to_string(&mut text).ok()?;
    text.trim_end().parse().ok()
}

fn remember(path: &Path, id: SnapshotId) {
    let kept = path
        .parent()
        .map_or(Err(io::ErrorKind::InvalidInput.into()), durable::create_dirs)
        .and_then(|()| durable::write(path, format!("{id}\n").as_bytes()));
    if let Err(error) = kept {
        tracing::warn!(path = %path.display(), %error, "can't remember the snapshot of a name");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_damaged_note_is_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names/x");
        assert_eq!(recall(&path), None);
        let id: SnapshotId = format!("fs-{}", Digest::of(b"x").to_hex()).parse().unwrap();
        remember(&path, id);
        assert_eq!(recall(&path), Some(id));
        for damaged in ["", "base\n", &"f".repeat(1 << 20), &id.to_string()[..20]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(recall(&path), None, "{damaged:.20}");
        }
    }
}
