//! Reads, writes and merges the profiles of snapshots.

use bytes::Bytes;

use super::changing::ChangeStep;
use super::client::{Reach, Remote, WholeObject};
use super::error::StoreError;
use super::key::ObjectKey;
use crate::ids::SnapshotId;
use crate::profile::{ENCODED_LEN_MAX, Profile, ProfileError, ProfileLabel, Run};

impl Remote {
    /// Returns the profile of a snapshot for `label`, or `None` if there is none. Takes one
    /// request.
    ///
    /// An unusable profile is [`StoreError::Profile`], which a caller may treat as missing. The
    /// profile may contain groups that the index does not have: see [`Profile::retain_groups`].
    pub async fn profile(
        &self,
        id: &SnapshotId,
        label: &ProfileLabel,
    ) -> Result<Option<Profile>, StoreError> {
        let key = key(*id, label);
        let Some(found) = self.find(&key, ENCODED_LEN_MAX, Reach::OutboxFirst).await? else {
            return Ok(None);
        };
        let profile = decode(&found.body, id, label);
        profile.map(Some).map_err(|reason| self.unusable_profile(&key, reason))
    }

    /// Returns the labels of a snapshot's profiles, sorted.
    pub async fn profiles(&self, id: &SnapshotId) -> Result<Vec<ProfileLabel>, StoreError> {
        self.list(&ObjectKey::profiles_of(id), ObjectKey::label_at).await
    }

    /// Merges a run into the profile for `label`, creating it if necessary, and returns the result.
    /// A run without touches is a no-op.
    ///
    /// With conditional writes, runs that others merge concurrently are not lost. A damaged profile
    /// is replaced; a profile of an unknown version is left unchanged and is an error.
    pub async fn merge_profile(
        &self,
        id: &SnapshotId,
        label: &ProfileLabel,
        run: &Run,
    ) -> Result<Profile, StoreError> {
        let key = key(*id, label);
        self.change(&key, ENCODED_LEN_MAX, |found| {
            let known = found.map(|body| decode(body, id, label)).transpose();
            let mut profile = match known {
                Ok(known) => known.unwrap_or_else(|| Profile::new(*id, label.clone())),
                Err(reason @ ProfileError::Version { .. }) => {
                    return Err(self.unusable_profile(&key, reason));
                }
                Err(reason) => {
                    let object = self.object_name(&key);
                    tracing::warn!(object, %reason, "replacing an unusable profile");
                    Profile::new(*id, label.clone())
                }
            };
            if run.is_empty() {
                return Ok(ChangeStep::Leave(profile));
            }
            profile.merge(run);
            Ok(ChangeStep::Write(Bytes::from(profile.encode()), profile))
        })
        .await
    }

    /// Writes a profile, replacing an existing one.
    pub async fn put_profile(&self, profile: &Profile) -> Result<(), StoreError> {
        let key = key(profile.snapshot, &profile.label);
        self.put(&key, profile.encode().into()).await
    }

    /// Removes a profile. Idempotent.
    pub async fn remove_profile(
        &self,
        id: &SnapshotId,
        label: &ProfileLabel,
    ) -> Result<(), StoreError> {
        self.remove(&key(*id, label)).await
    }

    fn unusable_profile(&self, key: &ObjectKey, reason: ProfileError) -> StoreError {
        StoreError::Profile { object: self.object_name(key), reason }
    }
}

fn key(snapshot: SnapshotId, label: &ProfileLabel) -> ObjectKey {
    ObjectKey::Profile { snapshot, label: label.clone() }
}

/// Decodes a profile, which must belong to `id` and `label`.
fn decode(
    body: &WholeObject,
    id: &SnapshotId,
    label: &ProfileLabel,
) -> Result<Profile, ProfileError> {
    let bytes = match body {
        WholeObject::Bytes(bytes) => bytes,
        WholeObject::TooLong(len) => return Err(ProfileError::TooLong { len: *len }),
    };
    let profile = Profile::decode(bytes)?;
    if profile.snapshot == *id && profile.label == *label {
        return Ok(profile);
    }
    let found = format!("the profile '{}' of {}", profile.label, profile.snapshot);
    Err(ProfileError::Misplaced { found })
}
