//! Carries snapshots that were sealed on this host to their store: what each refers to first, its record
//! last but for its name, and only then takes it out of the directory. Whatever step is the last before a
//! crash, the next try goes on from there.

use std::fs;
use std::io;
use std::path::Path;

use futures::TryStreamExt;
use inlay_store::format::BlobIdx;
use inlay_store::ids::SnapshotId;
use inlay_store::remote::{ObjectKey, Remote, StoreConfig};

use super::error::SnapshotError;
use super::open::open_index;
use crate::inject::{self, Step};
use crate::state::State;

/// The longest object that is carried, in bytes: what a blob can be.
const OBJECT_LEN_MAX: u64 = 1 << 32;

/// Where sealed snapshots wait: a directory that is laid out as a store is.
#[derive(Debug, Clone)]
pub struct Waiting {
    remote: Remote,
    dir: std::path::PathBuf,
}

impl Waiting {
    /// Those in `dir`. To be called within a runtime.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let remote = Remote::open(&StoreConfig::new(dir.display().to_string()))?;
        Ok(Self { remote, dir: dir.to_owned() })
    }

    /// Which are there.
    pub async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        Ok(self.remote.snapshot_ids().await?)
    }

    /// Carries one to `far`.
    pub async fn ship(
        &self,
        id: SnapshotId,
        far: &Remote,
        state: &State,
    ) -> Result<(), SnapshotError> {
        let near = &self.remote;
        let index = open_index(near, state, id).await?;
        let mut carried = Vec::new();
        for blob in 0..index.blob_count() {
            let blob = index.blob(BlobIdx(blob));
            let blob = blob.map_err(|source| SnapshotError::Index { id, source })?;
            let key = ObjectKey::Blob(blob.id);
            // Others are the store's already.
            if near.len(&key).await?.is_some() {
                far.put_immutable(&key, near.get(&key, OBJECT_LEN_MAX).await?).await?;
                carried.push(key);
            }
        }
        injected(Step::SealedBlobsShipped)?;
        let key = ObjectKey::Index(id.index);
        if near.len(&key).await?.is_some() {
            far.put_immutable(&key, near.get(&key, OBJECT_LEN_MAX).await?).await?;
            carried.push(key);
        }
        match far.snapshot(&id).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {
                far.put_snapshot(&near.snapshot(&id).await?).await?;
            }
            Err(error) => return Err(error.into()),
        }
        injected(Step::SealedRecordShipped)?;
        let mut names = near.names().await?;
        while let Some(named) = names.try_next().await? {
            if named.id == id {
                far.set_name(&named).await?;
                near.remove_name(&named.name).await?;
            }
        }
        // The record first: without it nothing of the rest is carried again.
        carried.push(ObjectKey::Record(id));
        for key in carried.iter().rev() {
            self.remove(key)?;
        }
        Ok(())
    }

    /// Carries names of snapshots that are in `far` already: they were given one more, or a daemon has
    /// died before it had given the first.
    pub async fn ship_names(&self, far: &Remote) -> Result<(), SnapshotError> {
        let mut names = self.remote.names().await?;
        while let Some(named) = names.try_next().await? {
            // With its record, if that is still here.
            if self.remote.len(&ObjectKey::Record(named.id)).await?.is_none() {
                far.set_name(&named).await?;
                self.remote.remove_name(&named.name).await?;
            }
        }
        Ok(())
    }

    fn remove(&self, key: &ObjectKey) -> Result<(), SnapshotError> {
        let path = key.file(&self.dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SnapshotError::at(&path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn injected(step: Step) -> Result<(), SnapshotError> {
    inject::point(step).map_err(SnapshotError::at(Path::new(step.name())))
}
