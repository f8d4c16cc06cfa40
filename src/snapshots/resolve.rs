//! From what a user types to a snapshot: a name, a whole id, or the beginning of an id.

use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::remote::{Name, Remote};

use super::error::SnapshotError;

/// The fewest digits that are taken for the beginning of an id.
const PREFIX_DIGITS_MIN: usize = 4;

/// What a user typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A whole id.
    Id(SnapshotId),
    /// What could be the beginning of an id, or a name.
    Prefix(String),
    /// A name.
    Name(Name),
}

impl Reference {
    /// Reads `text`, without asking the store.
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if is_prefix(text) {
            return Ok(Self::Prefix(text.to_owned()));
        }
        name(text).map(Self::Name)
    }
}

fn is_prefix(text: &str) -> bool {
    text.split_once('-').is_some_and(|(kind, digits)| {
        Kind::from_prefix(kind).is_some()
            && digits.len() >= PREFIX_DIGITS_MIN
            && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn name(text: &str) -> Result<Name, SnapshotError> {
    text.parse().map_err(|error: inlay_store::remote::NameError| SnapshotError::BadReference {
        reference: text.to_owned(),
        why: error.to_string(),
    })
}

/// Finds the snapshot that `text` means. A whole id is taken as it is; a name is looked up; the
/// beginning of an id (four digits or more) must fit one snapshot only, and a name comes first.
pub async fn resolve(remote: &Remote, text: &str) -> Result<SnapshotId, SnapshotError> {
    let unknown = || SnapshotError::Unknown {
        reference: text.to_owned(),
        store: remote.description().to_owned(),
    };
    let wanted = match Reference::parse(text)? {
        Reference::Id(id) => return Ok(id),
        Reference::Name(name) => {
            return remote.name(&name).await?.map(|record| record.id).ok_or_else(unknown);
        }
        Reference::Prefix(prefix) => prefix,
    };
    if let Some(record) = remote.name(&name(&wanted)?).await? {
        return Ok(record.id);
    }
    let mut found = remote.snapshot_ids().await?;
    found.retain(|id| id.to_string().starts_with(&wanted));
    match found.as_slice() {
        [] => Err(unknown()),
        [only] => Ok(*only),
        several => Err(SnapshotError::Ambiguous {
            reference: wanted,
            ids: several.iter().take(5).map(ToString::to_string).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_store::ids::{Digest, IndexDigest};

    #[test]
    fn ids_prefixes_and_names_are_told_apart() {
        let id = SnapshotId { kind: Kind::Image, index: IndexDigest(Digest::of(b"a")) };
        assert_eq!(Reference::parse(&id.to_string()).unwrap(), Reference::Id(id));
        assert_eq!(Reference::parse("img-12ab").unwrap(), Reference::Prefix("img-12ab".into()));
        for text in ["base", "img-12", "img-xyzz", "dog-12ab", "python:3.12-slim"] {
            assert!(matches!(Reference::parse(text).unwrap(), Reference::Name(_)), "{text}");
        }
        assert!(Reference::parse("../etc").is_err());
        assert!(Reference::parse("").is_err());
    }
}
