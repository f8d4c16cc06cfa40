//! Object paths in the store, and the names that users give to snapshots.

use std::fmt;
use std::str::FromStr;

use object_store::path::{Path, PathPart};
use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, Digest, IndexDigest, Kind, SnapshotId};
use crate::profile::ProfileLabel;

/// An error from parsing a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too short or too long.
    #[error("'{0}' is not a name: a name has 1 to {max} characters", max = Name::LEN_MAX)]
    Length(String),
    /// Contains a character that is not allowed.
    #[error("'{name}' is not a name: '{found}' is not one of a-z A-Z 0-9 . _ - : /")]
    Character {
        /// The text.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// A part between slashes is empty or does not start with a letter or a digit.
    #[error("'{0}' is not a name: each part between slashes begins with a letter or a digit")]
    Part(String),
    /// Could be mistaken for an id.
    #[error("'{0}' is not a name: it looks like a snapshot id; choose another")]
    LooksLikeAnId(String),
}

/// A name that a user gives to a snapshot: `base`, `python:3.12-slim`, `team/app`.
///
/// 1 to 128 characters of `a-z A-Z 0-9 . _ - : /`. Each part between slashes starts with a letter
/// or a digit, so none is empty, `.` or `..`. Must not look like the id of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The maximum length, in characters.
    pub const LEN_MAX: usize = 128;

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Encodes the name as a single path component. A slash becomes a comma, which no name
    /// contains, so that two names never share a path, and `team` and `team/app` can coexist in a
    /// directory. Percent-encoding is avoided, because too many servers decode it twice.
    fn to_part(&self) -> String {
        self.0.replace('/', ",")
    }

    fn from_part(part: &str) -> Option<Self> {
        if part.contains('/') {
            return None;
        }
        part.replace(',', "/").parse().ok()
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let own = || text.to_owned();
        if text.is_empty() || text.chars().count() > Self::LEN_MAX {
            return Err(NameError::Length(own()));
        }
        let belongs = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
        if let Some(found) = text.chars().find(|&c| !belongs(c)) {
            return Err(NameError::Character { name: own(), found });
        }
        if !text.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric())) {
            return Err(NameError::Part(own()));
        }
        if looks_like_an_id(text) {
            return Err(NameError::LooksLikeAnId(own()));
        }
        Ok(Self(own()))
    }
}

/// Returns whether `text` is the prefix of a kind, a dash and hexadecimal digits: an id, or the
/// start of one.
fn looks_like_an_id(text: &str) -> bool {
    text.split_once('-').is_some_and(|(prefix, digits)| {
        Kind::from_prefix(prefix).is_some() && digits.chars().all(|c| c.is_ascii_hexdigit())
    })
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies an object in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// Concatenated groups: `blobs/<2 digits>/<64 digits>`.
    Blob(BlobId),
    /// A packed index: `indexes/<2 digits>/<64 digits>`.
    Index(IndexDigest),
    /// The record of a snapshot: `snapshots/<id>.json`.
    Record(SnapshotId),
    /// The record of a name: `names/<name>.json`, with slashes replaced by commas.
    Name(Name),
    /// A profile of a snapshot: `profiles/<id>/<label>.profile`.
    Profile {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The label of the profile.
        label: ProfileLabel,
    },
}

pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const NAMES: &str = "names";
const PROFILES: &str = "profiles";
const RECORD_SUFFIX: &str = ".json";
const PROFILE_SUFFIX: &str = ".profile";

impl ObjectKey {
    /// Returns the path of the object below the store's `root`.
    pub fn path(&self, root: &Path) -> Path {
        // No character of these parts needs escaping, and a `PathPart` cannot leave its directory.
        let parts = match self {
            Self::Blob(BlobId(digest)) => fanned("blobs", *digest),
            Self::Index(IndexDigest(digest)) => fanned("indexes", *digest),
            Self::Record(id) => vec![SNAPSHOTS.to_owned(), format!("{id}{RECORD_SUFFIX}")],
            Self::Name(name) => vec![NAMES.to_owned(), name.to_part() + RECORD_SUFFIX],
            Self::Profile { snapshot, label } => {
                let file = format!("{label}{PROFILE_SUFFIX}");
                vec![PROFILES.to_owned(), snapshot.to_string(), file]
            }
        };
        parts.iter().fold(root.clone(), |path, part| path.join(PathPart::from(part.as_str())))
    }

    /// Returns the path of the object in the directory store `dir`.
    pub fn file(&self, dir: &std::path::Path) -> std::path::PathBuf {
        dir.join(self.path(&Path::default()).to_string())
    }

    /// Returns the directory of the profiles of `snapshot`, relative to the store's root.
    pub(super) fn profiles_of(snapshot: &SnapshotId) -> Path {
        Path::from(PROFILES).join(snapshot.to_string())
    }

    /// Parses the path of a profile; `None` if it is not one.
    pub(super) fn label_at(path: &Path) -> Option<ProfileLabel> {
        path.filename()?.strip_suffix(PROFILE_SUFFIX)?.parse().ok()
    }

    /// Parses the path of a snapshot's record; `None` if it is not one.
    pub(super) fn snapshot_at(path: &Path) -> Option<SnapshotId> {
        path.filename()?.strip_suffix(RECORD_SUFFIX)?.parse().ok()
    }

    /// Parses the path of a name's record; `None` if it is not one.
    pub(super) fn name_at(path: &Path) -> Option<Name> {
        Name::from_part(path.filename()?.strip_suffix(RECORD_SUFFIX)?)
    }
}

/// Spreads objects over 256 subdirectories, because filesystems and browsers handle huge
/// directories badly.
fn fanned(directory: &str, digest: Digest) -> Vec<String> {
    let hex = digest.to_hex();
    let shard = hex.chars().take(2).collect();
    vec![directory.to_owned(), shard, hex]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path_of(name: &Name) -> Path {
        ObjectKey::Name(name.clone()).path(&Path::from("root"))
    }

    #[test]
    fn objects_lie_where_the_layout_says() {
        let digest = Digest::of(b"x");
        let hex = digest.to_hex();
        let root = Path::from("a/b");
        let id = SnapshotId { kind: Kind::Directory, index: IndexDigest(digest) };
        let name: Name = "team/app:1".parse().unwrap();
        let label: ProfileLabel = "python3".parse().unwrap();
        let profile = ObjectKey::Profile { snapshot: id, label: label.clone() };
        assert_eq!(ObjectKey::label_at(&profile.path(&root)), Some(label));
        for (key, path) in [
            (ObjectKey::Blob(BlobId(digest)), format!("a/b/blobs/{}/{hex}", &hex[..2])),
            (ObjectKey::Index(IndexDigest(digest)), format!("a/b/indexes/{}/{hex}", &hex[..2])),
            (ObjectKey::Record(id), format!("a/b/snapshots/dir-{hex}.json")),
            (ObjectKey::Name(name), "a/b/names/team,app:1.json".to_owned()),
            (profile, format!("a/b/profiles/dir-{hex}/python3.profile")),
        ] {
            assert_eq!(key.path(&root).as_ref(), path);
        }
        let blob = ObjectKey::Blob(BlobId(digest)).path(&Path::default());
        assert_eq!(blob.as_ref(), format!("blobs/{}/{hex}", &hex[..2]));
    }

    #[test]
    fn usual_names_are_names() {
        for name in ["base", "python:3.12-slim", "team/app", "host.example:5000/a/b_c:v1", "x", "3"]
        {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        assert!("a".repeat(128).parse::<Name>().is_ok());
        assert!("img-builder".parse::<Name>().is_ok());
    }

    #[test]
    fn names_that_could_escape_the_store_or_be_ambiguous_are_refused() {
        let long = "a".repeat(129);
        for name in [
            "", "/", "a/", "/a", "a//b", ".", "..", "a/..", "a/../b", "./a", "-rf", "a b", "a,b",
            "a%2Fb", "a\\b", "a#1", "é", "a\0", "img-0123", "dir-", &long,
        ] {
            assert!(name.parse::<Name>().is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_names_path_stays_below_names_and_gives_the_name_back(text in "[a-zA-Z0-9._:/-]{1,20}") {
            let Ok(name) = text.parse::<Name>() else { return Ok(()) };
            let path = path_of(&name);
            prop_assert_eq!(path.parts().count(), 3);
            prop_assert!(path.as_ref().starts_with("root/names/"));
            prop_assert_eq!(ObjectKey::name_at(&path), Some(name));
        }

        #[test]
        fn two_names_never_share_a_path(a in "[a:/.]{1,4}", b in "[a:/.]{1,4}") {
            let (Ok(a), Ok(b)) = (a.parse::<Name>(), b.parse::<Name>()) else { return Ok(()) };
            prop_assert_eq!(a == b, path_of(&a) == path_of(&b));
        }
    }
}
