//! Digests, and a distinct id type for each thing that a digest names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An error from parsing a digest or a snapshot id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 64 hexadecimal digits.
    #[error("'{0}' is not a digest: 64 hexadecimal digits are needed")]
    Digest(String),
    /// The part before the dash names no kind.
    #[error("'{0}' is not a snapshot id: it begins with img-, fs-, dir- or mem-")]
    Kind(String),
}

/// A BLAKE3-256 digest.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Wraps 32 bytes that are already a digest.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        const DIGITS: [char; 16] =
            ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
        self.0
            .iter()
            .flat_map(|b| [b >> 4, b & 15])
            .filter_map(|n| DIGITS.get(usize::from(n)))
            .collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Digest(text.to_owned());
        if text.len() != 64 {
            return Err(wrong());
        }
        let mut nibbles = text.chars().map(|c| c.to_digit(16));
        let mut bytes = [0u8; 32];
        for byte in &mut bytes {
            let (Some(Some(high)), Some(Some(low))) = (nibbles.next(), nibbles.next()) else {
                return Err(wrong());
            };
            *byte = u8::try_from(high << 4 | low).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
            FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        #[serde(transparent)]
        #[repr(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

digest_id!(
    /// Identifies a blob: the BLAKE3 of all its bytes.
    BlobId
);
digest_id!(
    /// Identifies a group by its stored form: the BLAKE3 of its compressed bytes.
    GroupDigest
);
digest_id!(
    /// Identifies a group by its contents: the BLAKE3 of its decoded bytes.
    DecodedDigest
);
digest_id!(
    /// Identifies a chunk by its content: the BLAKE3 of its decoded bytes.
    ChunkDigest
);
digest_id!(
    /// Identifies an index: the BLAKE3 of its uncompressed bytes.
    IndexDigest
);

/// The kind of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An imported container image or root filesystem.
    Image,
    /// The whole root of a sandbox.
    Filesystem,
    /// One directory of a sandbox.
    Directory,
    /// The processes of a sandbox.
    Memory,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Image, Self::Filesystem, Self::Directory, Self::Memory];

    /// Returns the prefix of an id of this kind, without the dash.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Image => "img",
            Self::Filesystem => "fs",
            Self::Directory => "dir",
            Self::Memory => "mem",
        }
    }

    /// Returns the number of this kind in an index.
    pub const fn code(self) -> u32 {
        match self {
            Self::Image => 1,
            Self::Filesystem => 2,
            Self::Directory => 3,
            Self::Memory => 4,
        }
    }

    /// Returns the kind with number `code`, or `None` if it is unknown.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Returns the kind with this prefix, or `None` if it is unknown.
    pub fn from_prefix(prefix: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.prefix() == prefix)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Filesystem => "filesystem",
            Self::Directory => "directory",
            Self::Memory => "memory",
        })
    }
}

/// Identifies a snapshot: its kind and the digest of its index. Printed as `img-<64 digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The kind. The index records it too, so that the two can be compared.
    pub kind: Kind,
    /// The BLAKE3 of the index.
    pub index: IndexDigest,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind.prefix(), self.index)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SnapshotId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Kind(text.to_owned());
        let (prefix, digest) = text.split_once('-').ok_or_else(wrong)?;
        let kind = Kind::from_prefix(prefix).ok_or_else(wrong)?;
        Ok(Self { kind, index: IndexDigest(digest.parse()?) })
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_being_printed_and_read() {
        for kind in Kind::ALL {
            let id = SnapshotId { kind, index: IndexDigest(Digest::of(b"x")) };
            assert_eq!(id.to_string().parse::<SnapshotId>().unwrap(), id);
            assert_eq!(Kind::from_code(kind.code()), Some(kind));
        }
    }

    #[test]
    fn malformed_snapshot_ids_are_refused() {
        let digest = "0".repeat(64);
        assert!(format!("dog-{digest}").parse::<SnapshotId>().is_err());
        assert!(digest.parse::<SnapshotId>().is_err());
        assert!("img-00".parse::<SnapshotId>().is_err());
        assert!(format!("img-{}é", "0".repeat(62)).parse::<SnapshotId>().is_err());
    }
}
