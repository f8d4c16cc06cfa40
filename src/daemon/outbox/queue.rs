//! On-disk queue of one outbox: sealed snapshots in the order of sealing.
//!
//! `queue/<sequence>.json` commits a snapshot whose objects are already in `objects`. A damaged
//! entry is left in place and reported. The queue also decides which claim on a name is valid, and
//! from which targets the name may be moved.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inlay_base::durable;
use inlay_base::record::{self, Extra, Record};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::{Name, NameRecord, NameSeen};
use serde::{Deserialize, Serialize};

use super::super::timestamp::Moment;

const SUFFIX: &str = ".json";
/// Digits of a sequence number in a file name, zero-padded so that names sort numerically.
const DIGITS: usize = 20;

/// A sealed snapshot that is not in its store yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueEntry {
    version: u32,
    /// Increases with each seal.
    pub(super) sequence: u64,
    pub(super) snapshot: SnapshotId,
    pub(super) sealed: Moment,
    /// The name to point at the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Claim>,
    #[serde(flatten)]
    extra: Extra,
}

/// A claim on a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) name: Name,
    /// Target of the name when the snapshot was sealed, as far as this host knew.
    pub(super) before: NameSeen,
}

impl Record for QueueEntry {
    const VERSION: u32 = 1;
}

/// A damaged file of the outbox. It is left in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) path: PathBuf,
    pub(super) why: String,
}

impl Damage {
    /// Whether the file still exists. If that can't be determined, it counts as existing.
    pub(super) fn is_there(&self) -> bool {
        !matches!(fs::symlink_metadata(&self.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// From which states a name may be moved to an entry's snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Allowed {
    /// It points at one of these.
    stands_for: Vec<NameSeen>,
    /// Or it was set before this time, counted from 1970-01-01 00:00 UTC.
    set_before: Option<Duration>,
}

impl Allowed {
    /// Whether a name in the state `found` may be moved.
    pub(super) fn permits(&self, found: Option<&NameRecord>) -> bool {
        let seen = NameSeen::from(found.map(|found| found.id));
        self.stands_for.contains(&seen)
            || self.set_before.is_some_and(|limit| found.is_none_or(|at| at.updated() < limit))
    }
}

/// The queue. Every change is durable when the call returns.
#[derive(Debug)]
pub(super) struct Queue {
    dir: PathBuf,
    waiting: BTreeMap<u64, QueueEntry>,
    damaged: Vec<Damage>,
    next: u64,
}

impl Queue {
    /// Reads the queue in `dir`, which may be missing. Fails if it is unknown which entries exist.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let mut queue =
            Self { dir: dir.to_owned(), waiting: BTreeMap::new(), damaged: Vec::new(), next: 1 };
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(queue),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if durable::is_unfinished(&name) {
                durable::remove(&entry.path())?;
                continue;
            }
            queue.load(entry.path(), name.to_str().and_then(sequence_of));
        }
        Ok(queue)
    }

    fn load(&mut self, path: PathBuf, sequence: Option<u64>) {
        self.next = self.next.max(sequence.map_or(0, |sequence| sequence.saturating_add(1)));
        let why = match (sequence, record::read::<QueueEntry>(&path)) {
            // Removed since it was listed.
            (_, Ok(None)) => return,
            (Some(sequence), Ok(Some(entry))) if entry.sequence == sequence => {
                self.waiting.insert(sequence, entry);
                return;
            }
            (_, Ok(Some(_))) => "its name does not match its contents".to_owned(),
            (_, Err(error)) => error.to_string(),
        };
        self.damaged.push(Damage { path, why });
    }

    /// Appends a snapshot whose objects are durable.
    pub(super) fn push(
        &mut self,
        snapshot: SnapshotId,
        name: Option<Claim>,
        sealed: Moment,
    ) -> io::Result<()> {
        let sequence = self.next;
        let entry = QueueEntry {
            version: QueueEntry::VERSION,
            sequence,
            snapshot,
            sealed,
            name,
            extra: Extra::new(),
        };
        durable::create_dirs(&self.dir)?;
        // The file may exist even after an error: never reuse its number.
        self.next = sequence.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
        record::write(&self.path(sequence), &entry)?;
        self.waiting.insert(sequence, entry);
        Ok(())
    }

    /// Removes an entry whose snapshot is in the store, and drops earlier claims on its name.
    pub(super) fn finish(&mut self, sequence: u64) -> io::Result<()> {
        let Some(entry) = self.waiting.get(&sequence) else { return Ok(()) };
        if let Some(Claim { name, .. }) = entry.name.clone() {
            let earlier: Vec<u64> = self
                .waiting
                .range(..sequence)
                .filter(|(_, earlier)| earlier.claims(&name))
                .map(|(sequence, _)| *sequence)
                .collect();
            for sequence in earlier {
                self.drop_claim(sequence)?;
            }
        }
        durable::remove(&self.path(sequence))?;
        self.waiting.remove(&sequence);
        Ok(())
    }

    /// Drops an entry's claim on its name.
    pub(super) fn drop_claim(&mut self, sequence: u64) -> io::Result<()> {
        let Some(entry) = self.waiting.get(&sequence) else { return Ok(()) };
        let unnamed = QueueEntry { name: None, ..entry.clone() };
        record::write(&self.path(sequence), &unnamed)?;
        self.waiting.insert(sequence, unnamed);
        Ok(())
    }

    /// Iterates over the entries, earliest first.
    pub(super) fn entries(&self) -> impl Iterator<Item = &QueueEntry> {
        self.waiting.values()
    }

    /// Returns the entry with this number, if it still waits.
    pub(super) fn get(&self, sequence: u64) -> Option<&QueueEntry> {
        self.waiting.get(&sequence)
    }

    /// Returns the number of the next entry, greater than all that wait.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Number of waiting snapshots.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Damaged entries.
    pub(super) fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Whether `snapshot` waits.
    pub(super) fn has(&self, snapshot: SnapshotId) -> bool {
        self.entries().any(|entry| entry.snapshot == snapshot)
    }

    /// Whether an entry claims `name`.
    pub(super) fn claims(&self, name: &Name) -> bool {
        self.entries().any(|entry| entry.claims(name))
    }

    /// Returns from which states the entry's name may be moved: from its target when the entry was
    /// sealed, from an earlier snapshot of this queue that still waits, or from the target that one
    /// replaces. If this host did not know the target, from anything set before the seal.
    pub(super) fn allowed(&self, entry: &QueueEntry, now: &Moment) -> Allowed {
        let mut allowed = Allowed { stands_for: Vec::new(), set_before: None };
        let Some(claim) = &entry.name else { return allowed };
        let mut link = |before: NameSeen, sealed: &Moment| match before {
            NameSeen::Unknown => allowed.set_before = Some(now.earliest_wall_of(sealed)),
            known => allowed.stands_for.push(known),
        };
        link(claim.before, &entry.sealed);
        let mut before = claim.before;
        for earlier in self.waiting.range(..entry.sequence).rev().map(|(_, earlier)| earlier) {
            let Some(claim) = earlier.name.as_ref().filter(|_| earlier.claims(&claim.name)) else {
                continue;
            };
            if before == NameSeen::Snapshot(earlier.snapshot) {
                link(claim.before, &earlier.sealed);
                before = claim.before;
            }
        }
        allowed
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{sequence:0DIGITS$}{SUFFIX}"))
    }
}

impl QueueEntry {
    fn claims(&self, name: &Name) -> bool {
        self.name.as_ref().is_some_and(|claim| claim.name == *name)
    }
}

fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let all = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    if all { digits.parse().ok() } else { None }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
