//! Updates mutable objects without losing concurrent writes, by compare-and-swap.

use bytes::Bytes;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};

use super::client::{Reach, Remote, WholeObject};
use super::error::StoreError;
use super::failure::Failure;
use super::key::ObjectKey;
use super::retry::Operation;

/// The maximum number of attempts to update an object under contention.
const ATTEMPTS_MAX: u32 = 16;

/// An object as read, with the version that a conditional write must match.
pub(super) struct VersionedObject {
    pub(super) body: WholeObject,
    version: UpdateVersion,
}

/// The decision about an object that was read.
pub(super) enum ChangeStep<R> {
    /// Leave it unchanged.
    Leave(R),
    /// Write these bytes.
    Write(Bytes, R),
}

/// The outcome of a conditional write.
pub(super) enum Conditional {
    Written,
    Changed,
    Unsupported,
}

impl Remote {
    /// Reads a mutable object. Does not read more than `len_max` bytes.
    pub(super) async fn find(
        &self,
        key: &ObjectKey,
        len_max: u64,
        reach: Reach,
    ) -> Result<Option<VersionedObject>, StoreError> {
        match self.get_whole(key, len_max, reach).await {
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok((meta, body)) => {
                let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
                Ok(Some(VersionedObject { body, version }))
            }
        }
    }

    /// Updates an object in a read-modify-write loop. `look` decides what to write, and is called
    /// again if the object was changed before the write.
    ///
    /// Without conditional writes, concurrent writes by others are lost.
    pub(super) async fn change<R>(
        &self,
        key: &ObjectKey,
        len_max: u64,
        mut look: impl FnMut(Option<&WholeObject>) -> Result<ChangeStep<R>, StoreError>,
    ) -> Result<R, StoreError> {
        self.check_writable(key)?;
        let mut attempted: Option<(Bytes, R)> = None;
        for _ in 0..ATTEMPTS_MAX {
            let found = self.find(key, len_max, Reach::StoreOnly).await?;
            let body = found.as_ref().map(|found| &found.body);
            if let Some((ours, result)) = attempted.take()
                && matches!(body, Some(WholeObject::Bytes(now)) if *now == ours)
            {
                // The previous write seemed to fail, but had taken effect.
                return Ok(result);
            }
            let (bytes, result) = match look(body)? {
                ChangeStep::Leave(result) => return Ok(result),
                ChangeStep::Write(bytes, result) => (bytes, result),
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

    /// Removes a mutable object. Idempotent.
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

    /// Writes an object if the precondition in `mode` holds.
    pub(super) async fn put_if(
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
