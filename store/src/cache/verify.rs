//! Reads everything that the cache has, and removes what is not what it should be.

use std::io::{self, ErrorKind};

use super::content::{Content, sealed_cost};
use super::disk::Open;
use super::entry::{Entry, Identity, Reject, file_cost};
use super::evict::What;
use super::fill::cost_of_ready;
use super::placement::ContentId;
use super::seal::Hashed;
use super::store::Inner;
use super::{CacheError, lease};
use crate::ids::GroupDigest;

/// What a look at everything found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Files of groups that were read.
    pub groups: u64,
    /// Contents that were read.
    pub contents: u64,
    /// What all of them take.
    pub bytes: u64,
    /// What was wrong, and was removed: names of groups and contents.
    pub removed: Vec<String>,
    /// What could not be read or removed, and why.
    pub failed: Vec<String>,
}

enum Found {
    Good,
    Wrong,
    Gone,
}

impl Inner {
    /// Verifies everything, calling `progress` with the bytes that were looked at.
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
                Ok(Found::Good | Found::Gone) => {}
                Ok(Found::Wrong) => verified.removed.push(name),
                Err(error) => verified.failed.push(format!("{name}: {error}")),
            }
        }
        Ok(verified)
    }

    fn verify_group(&self, group: &GroupDigest) -> io::Result<Found> {
        let path = self.group_path(group);
        let Some(file) = there(self.disk.open(&path, Open::Read))? else { return Ok(Found::Gone) };
        let identity = Identity::of(&self.disk.stamp(&file)?);
        match Entry::verified(&*self.disk, file, identity, *group) {
            Ok(_) => Ok(Found::Good),
            Err(Reject::Io(error)) => Err(error),
            Err(Reject::Wrong) => {
                self.files.forget(group);
                self.disk.remove(&path)?;
                self.room.release(file_cost(identity.file_len()));
                Ok(Found::Wrong)
            }
        }
    }

    fn verify_content(&self, id: &ContentId, what: What) -> io::Result<Found> {
        // Not the one that readers share: whoever has it open goes on with what is proved.
        let content = Content::new(self.contents.dir(), *id);
        let (good, cost) = if matches!(what, What::Sealed(..)) {
            let opened = there(self.disk.open(&content.paths.sealed, Open::Read))?;
            let Some(file) = opened else { return Ok(Found::Gone) };
            let good = self.disk.stamp(&file)?.len == id.size
                && matches!(self.hash(&file, id)?, Hashed::Right);
            (good, sealed_cost(id))
        } else {
            let Some(part) = there(self.open_to_read(&content))?.flatten() else {
                return Ok(Found::Gone);
            };
            let cost = cost_of_ready(self, id, &part.ready)?;
            (self.prove_ranges(&part), cost)
        };
        if good {
            return Ok(Found::Good);
        }
        if let Some(part) = there(self.disk.open(&content.paths.part, Open::Read))?
            && !lease::own(&part)?
        {
            return Err(io::Error::other(
                "damaged, and in use: stop what uses it and verify again",
            ));
        }
        self.discard(&content, cost);
        Ok(Found::Wrong)
    }
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
