//! The profiles beside a snapshot: read by whoever attaches it, merged with each run.

use bytes::Bytes;

use super::changing::Step;
use super::client::{Remote, Whole};
use super::error::StoreError;
use super::key::ObjectKey;
use crate::ids::SnapshotId;
use crate::profile::{ENCODED_LEN_MAX, Profile, ProfileError, ProfileLabel, Run};

impl Remote {
    /// The profile of a snapshot for `label`, or nothing if there is none. One request.
    ///
    /// One that can't be used is [`StoreError::Profile`], which a caller may take for none. Its
    /// groups may be more than the index has: see [`Profile::retain_groups`].
    pub async fn profile(
        &self,
        id: &SnapshotId,
        label: &ProfileLabel,
    ) -> Result<Option<Profile>, StoreError> {
        let key = key(*id, label);
        let Some(found) = self.find(&key, ENCODED_LEN_MAX).await? else { return Ok(None) };
        let profile = decode(&found.body, id, label);
        profile.map(Some).map_err(|reason| self.unusable_profile(&key, reason))
    }

    /// The labels for which a snapshot has profiles, in order.
    pub async fn profiles(&self, id: &SnapshotId) -> Result<Vec<ProfileLabel>, StoreError> {
        self.list(&ObjectKey::profiles_of(id), ObjectKey::label_at).await
    }

    /// Adds a run to the profile for `label`, which is made if there is none, and returns it as it is
    /// then. A run without touches changes nothing.
    ///
    /// Runs that others add at the same time are kept, in a store with conditional writes. A profile
    /// that is damaged is begun anew; one of a version that is not known here is left, with an error.
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
                    tracing::warn!(object, %reason, "replacing a profile that can't be used");
                    Profile::new(*id, label.clone())
                }
            };
            if run.is_empty() {
                return Ok(Step::Leave(profile));
            }
            profile.merge(run);
            Ok(Step::Write(Bytes::from(profile.encode()), profile))
        })
        .await
    }

    /// Writes a profile, whatever was there.
    pub async fn put_profile(&self, profile: &Profile) -> Result<(), StoreError> {
        let key = key(profile.snapshot, &profile.label);
        self.put(&key, profile.encode().into()).await
    }

    /// Removes a profile. One that is not there is removed already.
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

/// Reads a profile that has to be of `id` and `label`.
fn decode(body: &Whole, id: &SnapshotId, label: &ProfileLabel) -> Result<Profile, ProfileError> {
    let bytes = match body {
        Whole::Bytes(bytes) => bytes,
        Whole::TooLong(len) => return Err(ProfileError::TooLong { len: *len }),
    };
    let profile = Profile::decode(bytes)?;
    if profile.snapshot == *id && profile.label == *label {
        return Ok(profile);
    }
    let found = format!("the profile '{}' of {}", profile.label, profile.snapshot);
    Err(ProfileError::Misplaced { found })
}
