//! Verifies all files of the cache and removes damaged ones.

use std::io::{self, ErrorKind};

use super::content::{CachedContent, sealed_cost};
use super::disk::Open;
use super::entry::{CacheFile, Identity, Reject, file_cost};
use super::evict::What;
use super::fill::cost_of_ready;
use super::placement::ContentId;
use super::seal::Hashed;
use super::store::CacheInner;
use super::{CacheError, lease};
use crate::ids::GroupDigest;

/// The result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Group files read.
    pub groups: u64,
    /// Contents read.
    pub contents: u64,
    /// Disk usage of all of them, in bytes.
    pub bytes: u64,
    /// Damaged files that were removed: names of groups and contents.
    pub removed: Vec<String>,
    /// Files that could not be read or removed, with the errors.
    pub failed: Vec<String>,
}

enum VerifiedCounts {
    Good,
    Wrong,
    Gone,
}

impl CacheInner {
    /// Verifies all files. Calls `progress` with the bytes of each.
    pub(super) fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Verified, CacheError> {
        let mut all = Vec::new();
        self.scan(&mut |candidate| all.push((candidate.what(), candidate.cost())))
            .map_err(CacheError::io("reading", &self.dir))?;
        let mut verified = Verified::default();
        for (what, cost) in all {
            let (name, found) = match what {
                What::Group(group) => {
                    verified.groups += 1;
                    (format!("group {group}"), self.verify_group(&group))
                }
                What::Part(digest, size) | What::Sealed(digest, size) => {
                    verified.contents += 1;
                    let id = ContentId { digest, size };
                    (format!("content {digest}"), self.verify_content(&id, what))
                }
            };
            verified.bytes += cost;
            progress(cost);
            match found {
                Ok(VerifiedCounts::Good | VerifiedCounts::Gone) => {}
                Ok(VerifiedCounts::Wrong) => verified.removed.push(name),
                Err(error) => verified.failed.push(format!("{name}: {error}")),
            }
        }
        Ok(verified)
    }

    fn verify_group(&self, group: &GroupDigest) -> io::Result<VerifiedCounts> {
        let path = self.group_path(group);
        let Some(file) = there(self.disk.open(&path, Open::Read))? else {
            return Ok(VerifiedCounts::Gone);
        };
        let identity = Identity::of(&self.disk.stamp(&file)?);
        match CacheFile::verified(&*self.disk, file, identity, *group) {
            Ok(_) => Ok(VerifiedCounts::Good),
            Err(Reject::Io(error)) => Err(error),
            Err(Reject::Wrong) => {
                self.files.forget(group);
                self.disk.remove(&path)?;
                self.room.release(file_cost(identity.file_len()));
                Ok(VerifiedCounts::Wrong)
            }
        }
    }

    fn verify_content(&self, id: &ContentId, what: What) -> io::Result<VerifiedCounts> {
        // A private `CachedContent`, not the shared one: readers that have it open continue with verified
        // ranges.
        let content = CachedContent::new(self.contents.dir(), *id);
        let (good, cost) = if matches!(what, What::Sealed(..)) {
            let opened = there(self.disk.open(&content.paths.sealed, Open::Read))?;
            let Some(file) = opened else { return Ok(VerifiedCounts::Gone) };
            let good = self.disk.stamp(&file)?.len == id.size
                && matches!(self.hash(&file, id)?, Hashed::Right);
            (good, sealed_cost(id))
        } else {
            let Some(part) = there(self.open_to_read(&content))?.flatten() else {
                return Ok(VerifiedCounts::Gone);
            };
            let cost = cost_of_ready(self, id, &part.ready)?;
            (self.prove_ranges(&part), cost)
        };
        if good {
            return Ok(VerifiedCounts::Good);
        }
        if matches!(what, What::Sealed(..)) {
            self.discard_sealed(&content, cost);
            return Ok(VerifiedCounts::Wrong);
        }
        let part = there(self.disk.open(&content.paths.part, Open::Read))?;
        if let Some(part) = &part
            && !lease::own(part)?
        {
            return Err(io::Error::other(
                "damaged, and in use: stop what uses it and verify again",
            ));
        }
        // `part`, and with it the lock, is held until the names are gone.
        self.discard_part(&content, cost);
        Ok(VerifiedCounts::Wrong)
    }
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
