//! Resolves a user's reference to a snapshot: a name, a full id, or a prefix of an id.

use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::remote::{Name, NameError, Remote, StoreConfig};

use super::error::SnapshotError;

/// Minimum digits of an id prefix.
const PREFIX_DIGITS_MIN: usize = 4;

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A full id.
    Id(SnapshotId),
    /// A prefix of an id.
    Prefix(String),
    /// A name.
    Name(Name),
}

impl Reference {
    /// Parses `text` without access to the store.
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let bad = |why| SnapshotError::BadReference { reference: text.to_owned(), why };
        match prefix_digits(text) {
            Some(digits) if digits >= PREFIX_DIGITS_MIN => Ok(Self::Prefix(text.to_owned())),
            Some(_) => Err(bad(format!("give at least {PREFIX_DIGITS_MIN} digits of an id"))),
            None => text.parse().map(Self::Name).map_err(|e: NameError| bad(e.to_string())),
        }
    }
}

/// Returns the number of digits if `text` is syntactically a prefix of an id. Names cannot have
/// this form.
fn prefix_digits(text: &str) -> Option<usize> {
    let (kind, digits) = text.split_once('-')?;
    let hex = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (hex && Kind::from_prefix(kind).is_some()).then_some(digits.len())
}

/// Resolves `text` to a snapshot id. A full id is returned without a lookup; a name is looked up; a
/// prefix of at least four digits must match exactly one snapshot.
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
    let mut found = match remote.snapshot_ids().await {
        Ok(found) => found,
        // Snapshots sealed on this host are found without the store.
        Err(error) => match sealed_ids(remote).await {
            Some(sealed) if sealed.iter().any(|id| id.to_string().starts_with(&wanted)) => sealed,
            _ => return Err(error.into()),
        },
    };
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

/// Returns the snapshots sealed on this host for the store; `None` if there are none.
async fn sealed_ids(remote: &Remote) -> Option<Vec<SnapshotId>> {
    let outbox_dir = remote.outbox_dir().filter(|outbox_dir| outbox_dir.is_used())?;
    let sealed = Remote::open(&StoreConfig::new(outbox_dir.dir().display().to_string())).ok()?;
    sealed.snapshot_ids().await.ok()
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
        for text in ["base", "img-xyzz", "dog-12ab", "python:3.12-slim"] {
            assert!(matches!(Reference::parse(text).unwrap(), Reference::Name(_)), "{text}");
        }
        assert!(Reference::parse("../etc").is_err());
        let short = Reference::parse("img-12a").unwrap_err().to_string();
        assert!(short.contains("at least 4 digits"), "{short}");
        assert!(Reference::parse("").is_err());
    }
}
