//! Objects that change: looked at and written again without losing what others write meanwhile.

use bytes::Bytes;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};

use super::client::{Remote, Whole};
use super::error::StoreError;
use super::failure::Failure;
use super::key::ObjectKey;
use super::retry::Operation;

/// How often an object is tried to be changed while others change it, too.
const ATTEMPTS_MAX: u32 = 16;

/// An object as it was found, and its state that a conditional write can refer to.
pub(super) struct Found {
    pub(super) body: Whole,
    version: UpdateVersion,
}

/// What is to become of an object that was looked at.
pub(super) enum Step<R> {
    /// It stays as it is.
    Leave(R),
    /// It becomes this.
    Write(Bytes, R),
}

/// What became of a conditional write.
enum Conditional {
    Written,
    Changed,
    Unsupported,
}

impl Remote {
    /// Reads an object that can change. One of more than `len_max` bytes is not read.
    pub(super) async fn find(
        &self,
        key: &ObjectKey,
        len_max: u64,
    ) -> Result<Option<Found>, StoreError> {
        match self.get_whole(key, len_max).await {
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok((meta, body)) => {
                let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
                Ok(Some(Found { body, version }))
            }
        }
    }

    /// Changes an object: `look` says what becomes of what is there, and is asked again if that has
    /// changed before it could be written.
    ///
    /// In a store without conditional writes, what others write in the same moment is lost.
    pub(super) async fn change<R>(
        &self,
        key: &ObjectKey,
        len_max: u64,
        mut look: impl FnMut(Option<&Whole>) -> Result<Step<R>, StoreError>,
    ) -> Result<R, StoreError> {
        self.check_writable(key)?;
        let mut attempted: Option<(Bytes, R)> = None;
        for _ in 0..ATTEMPTS_MAX {
            let found = self.find(key, len_max).await?;
            let body = found.as_ref().map(|found| &found.body);
            if let Some((ours, result)) = attempted.take()
                && matches!(body, Some(Whole::Bytes(now)) if *now == ours)
            {
                // The attempt that seemed to fail had succeeded after all.
                return Ok(result);
            }
            let (bytes, result) = match look(body)? {
                Step::Leave(result) => return Ok(result),
                Step::Write(bytes, result) => (bytes, result),
            };
            let mode = match found {
                Some(found) => PutMode::Update(found.version),
                None => PutMode::Create,
            };
            match self.put_if(key, bytes.clone(), mode).await? {
                Conditional::Written => return Ok(result),
                Conditional::Changed => attempted = Some((bytes, result)),
                Conditional::Unsupported => {
                    tracing::warn!(store = self.description(), "no conditional writes");
                    return self.put(key, bytes).await.map(|()| result);
                }
            }
        }
        Err(StoreError::Contended { object: self.object_name(key), attempts: ATTEMPTS_MAX })
    }

    /// Removes an object that can change. One that is not there is removed already.
    pub(super) async fn remove(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.check_writable(key)?;
        let path = key.path(self.root());
        let removed = self
            .run(self.request(Operation::Delete, key, 0), |store| {
                let path = path.clone();
                async move { Ok(store.delete(&path).await?) }
            })
            .await;
        match removed {
            Err(error) if error.is_not_found() => Ok(()),
            removed => removed,
        }
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<Conditional, StoreError> {
        let path = key.path(self.root());
        let written = self
            .run(self.request(Operation::Put, key, bytes.len() as u64), |store| {
                let (path, payload) = (path.clone(), PutPayload::from_bytes(bytes.clone()));
                let options = PutOptions::from(mode.clone());
                async move {
                    store.put_opts(&path, payload, options).await?;
                    Ok(())
                }
            })
            .await;
        match written {
            Ok(()) => Ok(Conditional::Written),
            Err(StoreError::Failed { cause: Failure::Conflict, .. }) => Ok(Conditional::Changed),
            Err(StoreError::Failed { cause: Failure::Unsupported(_), .. }) => {
                Ok(Conditional::Unsupported)
            }
            Err(error) => Err(error),
        }
    }
}
