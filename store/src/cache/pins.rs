//! Persists pins, which exempt files from eviction: one file per pinned snapshot, listing all
//! groups and contents that it needs.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::placement::ContentId;
use crate::ids::{Digest, GroupDigest, SnapshotId};

const MAGIC: &[u8; 8] = b"INLAYPIN";
const DIR: &str = "pins";

/// The cache files that a pinned snapshot needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinSet {
    /// Groups of small files, and groups shared by several files.
    pub groups: Vec<GroupDigest>,
    /// Contents of large files.
    pub contents: Vec<ContentId>,
}

impl PinSet {
    /// Encodes the magic number, both counts, the digests, and the BLAKE3 of all of these.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((self.groups.len() as u64).to_le_bytes());
        bytes.extend((self.contents.len() as u64).to_le_bytes());
        for group in &self.groups {
            bytes.extend(group.0.as_bytes());
        }
        for content in &self.contents {
            bytes.extend(content.digest.as_bytes());
            bytes.extend(content.size.to_le_bytes());
        }
        let check = Digest::of(&bytes);
        bytes.extend(check.as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Digest::of(body).as_bytes() != check {
            return None;
        }
        let mut rest = body.strip_prefix(MAGIC)?;
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at_checked(len)?;
            rest = tail;
            Some(head)
        };
        let mut number = || usize::try_from(u64::from_le_bytes(take(8)?.try_into().ok()?)).ok();
        let (groups, contents) = (number()?, number()?);
        let groups = take(groups.checked_mul(32)?)?;
        let contents = take(contents.checked_mul(40)?)?;
        let digest = |bytes: &[u8]| Some(Digest::from_bytes(bytes.get(..32)?.try_into().ok()?));
        Some(Self {
            groups: groups
                .chunks_exact(32)
                .map(|group| digest(group).map(GroupDigest))
                .collect::<Option<_>>()?,
            contents: contents
                .chunks_exact(40)
                .map(|content| {
                    let size = u64::from_le_bytes(content.get(32..)?.try_into().ok()?);
                    Some(ContentId { digest: digest(content)?, size })
                })
                .collect::<Option<_>>()?,
        })
    }
}

/// The union of all pins.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    pub(super) groups: HashSet<GroupDigest>,
    pub(super) contents: HashSet<Digest>,
}

impl Pinned {
    pub(super) fn load(cache: &Path) -> io::Result<Self> {
        let mut pinned = Self::default();
        for id in list(cache)? {
            let Some(set) = read(cache, &id)? else { continue };
            pinned.groups.extend(set.groups);
            pinned.contents.extend(set.contents.iter().map(|content| content.digest));
        }
        Ok(pinned)
    }
}

/// Returns the pinned snapshots.
pub(super) fn list(cache: &Path) -> io::Result<Vec<SnapshotId>> {
    let entries = match fs::read_dir(cache.join(DIR)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse::<SnapshotId>().ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Returns the pin of a snapshot; `None` if it is not pinned or its file is damaged.
pub(super) fn read(cache: &Path, id: &SnapshotId) -> io::Result<Option<PinSet>> {
    match fs::read(path(cache, id)) {
        Ok(bytes) => {
            let set = PinSet::from_bytes(&bytes);
            if set.is_none() {
                tracing::warn!(%id, "ignoring a damaged pin; pin the snapshot again");
            }
            Ok(set)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a pin durably.
pub(super) fn write(
    disk: &dyn Disk,
    cache: &Path,
    staged: &Path,
    id: &SnapshotId,
    set: &PinSet,
) -> io::Result<()> {
    let dir = cache.join(DIR);
    disk.make_dir(&dir)?;
    let file = disk.open(staged, super::disk::Open::New)?;
    disk.write(&file, &set.to_bytes(), 0)?;
    disk.sync(&file)?;
    disk.rename(staged, &path(cache, id))?;
    disk.sync_dir(&dir)
}

/// Removes a pin durably. Returns false if it did not exist.
pub(super) fn remove(disk: &dyn Disk, cache: &Path, id: &SnapshotId) -> io::Result<bool> {
    match disk.remove(&path(cache, id)) {
        Ok(()) => disk.sync_dir(&cache.join(DIR)).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn path(cache: &Path, id: &SnapshotId) -> PathBuf {
    cache.join(DIR).join(id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_come_back_whole_or_not_at_all() {
        let set = PinSet {
            groups: vec![GroupDigest(Digest::of(b"1")), GroupDigest(Digest::of(b"2"))],
            contents: vec![ContentId { digest: Digest::of(b"3"), size: 4 }],
        };
        let bytes = set.to_bytes();
        assert_eq!(PinSet::from_bytes(&bytes), Some(set));
        assert_eq!(PinSet::from_bytes(&PinSet::default().to_bytes()), Some(PinSet::default()));
        for len in 0..bytes.len() {
            assert_eq!(PinSet::from_bytes(&bytes[..len]), None, "{len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(PinSet::from_bytes(&bad), None, "{bit}");
        }
    }
}
