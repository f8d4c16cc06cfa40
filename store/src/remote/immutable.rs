//! Writes content-addressed objects: once, and again only if the existing one is damaged.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use md5::{Digest as _, Md5};
use object_store::ObjectStore;

use super::client::{Reach, Remote, WholeObject, within};
use super::error::StoreError;
use super::key::ObjectKey;
use super::local::{OnDisk, Settle};
use super::retry::Operation;

/// The outcome of writing an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object was uploaded.
    Written,
    /// The object already existed and was not uploaded.
    AlreadyThere,
    /// A damaged object existed and was replaced.
    Repaired,
}

/// How to compare an existing object with the expected bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// By length, and additionally where it costs no further request: by content in a directory,
    /// and by MD5 if the entity tag contains one.
    #[default]
    Compared,
    /// By content, in any store.
    Read,
}

/// Whether entity tags of a store are MD5 digests. In S3, they are, unless objects are encrypted
/// with customer keys or were uploaded in parts.
#[derive(Debug, Default)]
pub(super) struct Tags {
    other: AtomicBool,
}

/// The metadata of an existing object.
struct ExistingObject {
    len: u64,
    tag: Option<String>,
    on_disk: bool,
}

impl Remote {
    /// Writes a content-addressed object unless it exists. Replaces a damaged one, as far as
    /// [`Existing::Compared`] detects it.
    pub async fn put_immutable(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<PutOutcome, StoreError> {
        self.put_checked(key, bytes, Existing::Compared).await
    }

    /// Like [`Self::put_immutable`], with the check that `existing` selects.
    pub async fn put_checked(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        existing: Existing,
    ) -> Result<PutOutcome, StoreError> {
        self.check_writable(key)?;
        let outcome = match self.head(key).await {
            Ok(None) => PutOutcome::Written,
            Ok(Some(found)) if self.is_intact(key, &found, &bytes, existing).await? => {
                return Ok(PutOutcome::AlreadyThere);
            }
            Ok(Some(_)) => PutOutcome::Repaired,
            Err(error) if error.is_damage() => PutOutcome::Repaired,
            Err(error) => return Err(error),
        };
        if outcome == PutOutcome::Repaired {
            tracing::warn!(object = self.object_name(key), "replacing a damaged object");
        }
        self.put(key, bytes).await?;
        Ok(outcome)
    }

    /// Returns the metadata of an existing object; `None` if there is none. In a directory store,
    /// also makes the object durable.
    async fn head(&self, key: &ObjectKey) -> Result<Option<ExistingObject>, StoreError> {
        let path = key.path(self.root());
        let stall = self.policy().stall;
        let found = self
            .run(self.request(Operation::Head, key, 0), |store| {
                let path = path.clone();
                async move {
                    let mut options = Reach::StoreOnly.options().with_head(true);
                    options.extensions.insert(Settle);
                    let answer = within(stall, store.get_opts(&path, options)).await?;
                    Ok(ExistingObject {
                        len: answer.meta.size,
                        tag: answer.meta.e_tag,
                        on_disk: answer.extensions.get::<OnDisk>().is_some(),
                    })
                }
            })
            .await;
        match found {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(Some),
        }
    }

    async fn is_intact(
        &self,
        key: &ObjectKey,
        found: &ExistingObject,
        bytes: &Bytes,
        existing: Existing,
    ) -> Result<bool, StoreError> {
        let len = bytes.len() as u64;
        if found.len != len {
            return Ok(false);
        }
        let tag_says = self.tag_says(found, bytes).await;
        let must_read = match existing {
            Existing::Read => true,
            Existing::Compared => found.on_disk || tag_says == Some(false),
        };
        if !must_read {
            return Ok(true);
        }
        let intact = match self.get_whole(key, len, Reach::StoreOnly).await {
            Ok((_, WholeObject::Bytes(read))) => read == *bytes,
            Ok((_, WholeObject::TooLong(_))) => false,
            Err(error) if error.is_damage() => false,
            // The object was removed concurrently.
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
        };
        if intact && tag_says == Some(false) {
            self.tags().other.store(true, Ordering::Relaxed);
        }
        Ok(intact)
    }

    /// Returns whether the tag is the MD5 of `bytes`; `None` if the tag is not an MD5.
    async fn tag_says(&self, found: &ExistingObject, bytes: &Bytes) -> Option<bool> {
        if found.on_disk || self.tags().other.load(Ordering::Relaxed) {
            return None;
        }
        let tag = found.tag.as_deref()?.trim_matches('"').to_owned();
        let is_md5 = tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_md5 {
            return None;
        }
        let bytes = bytes.clone();
        // Takes tens of milliseconds for a blob: do not block a runtime thread.
        let hashed = tokio::task::spawn_blocking(move || {
            let digest = Md5::digest(&bytes);
            // Parses: the tag was checked to be 32 hexadecimal digits.
            u128::from_str_radix(&tag, 16)
                .is_ok_and(|tag| tag.to_be_bytes().as_slice() == digest.as_slice())
        });
        // If the task failed, read the object.
        Some(hashed.await.unwrap_or(false))
    }
}

#[cfg(test)]
#[path = "immutable_tests.rs"]
mod tests;
