//! Records names that could not be moved to a sealed snapshot because they had been moved
//! elsewhere: one file per name, `conflicts/<name>.json`, until this host sets the name or a user
//! accepts its current target.

use std::fs;
use std::io;

use inlay_base::durable;
use inlay_base::record::{self, Extra, Record};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::{Name, NameRecord, OutboxDir};
use serde::{Deserialize, Serialize};

use super::queue::{Claim, Damage, QueueEntry};
use crate::daemon::api::{NameConflict, StoreRef};

/// Maximum number of conflicts kept per store; further ones are only logged.
const KEPT_MAX: usize = 1000;

/// A conflict on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Conflict {
    version: u32,
    name: Name,
    snapshot: SnapshotId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stands_for: Option<SnapshotId>,
    #[serde(flatten)]
    extra: Extra,
}

impl Record for Conflict {
    const VERSION: u32 = 1;
}

/// Records that the name of `entry` was left as found.
pub(super) fn keep(
    outbox_dir: &OutboxDir,
    entry: &QueueEntry,
    claim: &Claim,
    found: Option<&NameRecord>,
) -> io::Result<()> {
    let stands_for = found.map(|found| found.id);
    tracing::warn!(
        name = claim.name.as_str(),
        snapshot = %entry.snapshot,
        stands_for = stands_for.map_or_else(|| "nothing".to_owned(), |id| id.to_string()),
        "a sealed snapshot is in its store, but its name was moved meanwhile and stays as it is"
    );
    durable::create_dirs(&outbox_dir.conflicts())?;
    let path = outbox_dir.conflict_file(&claim.name);
    if !path.exists() && fs::read_dir(outbox_dir.conflicts())?.count() >= KEPT_MAX {
        return Ok(());
    }
    let conflict = Conflict {
        version: Conflict::VERSION,
        name: claim.name.clone(),
        snapshot: entry.snapshot,
        stands_for,
        extra: Extra::new(),
    };
    record::write(&path, &conflict)
}

/// Removes the conflict of a name that was moved. Idempotent.
pub(super) fn forget(outbox_dir: &OutboxDir, name: &Name) -> io::Result<()> {
    durable::remove(&outbox_dir.conflict_file(name))
}

/// Removes all conflicts, leaving the names as they are. Unreadable files stay.
pub(super) fn forget_all(outbox_dir: &OutboxDir) -> io::Result<()> {
    let store = StoreRef { url: None, plain_http: false };
    for conflict in list(outbox_dir, &store).0 {
        if let Ok(name) = conflict.name.parse() {
            forget(outbox_dir, &name)?;
        }
    }
    Ok(())
}

/// Lists the conflicts of an outbox, and its unreadable files.
pub(super) fn list(outbox_dir: &OutboxDir, store: &StoreRef) -> (Vec<NameConflict>, Vec<Damage>) {
    let dir = outbox_dir.conflicts();
    let (mut conflicts, mut damaged) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (conflicts, damaged),
        Err(error) => return (conflicts, vec![Damage { path: dir, why: error.to_string() }]),
        Ok(entries) => entries,
    };
    for entry in entries.take(KEPT_MAX) {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                damaged.push(Damage { path: dir.clone(), why: error.to_string() });
                continue;
            }
        };
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match record::read::<Conflict>(&path) {
            Ok(None) => {}
            Ok(Some(found)) => conflicts.push(NameConflict {
                name: found.name.to_string(),
                snapshot: found.snapshot,
                stands_for: found.stands_for,
                store: store.clone(),
            }),
            Err(error) => damaged.push(Damage { path, why: error.to_string() }),
        }
    }
    conflicts.sort_by(|one, other| one.name.cmp(&other.name));
    (conflicts, damaged)
}
