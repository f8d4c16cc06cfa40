//! Recovers an outbox of an earlier daemon. Damaged files are left in place and reported.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use inlay_base::record::{self, RecordError};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::{Name, NameRecord, OutboxDir};

use super::super::api::StoreRef;
use super::super::timestamp::Moment;
use super::queue::{Claim, Damage, Queue};
use super::store_outbox::StoreFile;

/// The file that names an outbox's store.
pub(super) const STORE: &str = "store.json";
const QUEUE: &str = "queue";
/// Maximum length of a name record, in bytes.
const NAME_LEN_MAX: u64 = 64 << 10;

/// Returns the store of the outbox in `dir`; `None` if nothing was ever sealed into it.
pub(super) fn store_of(dir: &Path) -> Result<Option<StoreRef>, Damage> {
    let path = dir.join(STORE);
    let damaged = |why: String| Damage { path: path.clone(), why };
    match record::read::<StoreFile>(&path) {
        Ok(Some(file)) => {
            let store = file.store();
            let parent = dir.parent().unwrap_or(dir);
            if super::store_outbox::outbox_dir(parent, &store) == dir {
                Ok(Some(store))
            } else {
                Err(damaged("it names another store than its directory's".to_owned()))
            }
        }
        Ok(None) => {
            let empty = is_empty(dir).map_err(|error| damaged(error.to_string()))?;
            if empty { Ok(None) } else { Err(damaged("it is missing".to_owned())) }
        }
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// Reads the queue in `dir`, and appends complete snapshots without an entry: sealed by an older
/// version, or just before a crash.
pub(super) fn recover(
    dir: &Path,
    outbox_dir: &OutboxDir,
    store: &StoreRef,
) -> Result<(Queue, Vec<Damage>), Damage> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| Damage { path, why: error.to_string() }
    };
    repair_store(dir, store)?;
    let mut damaged = Vec::new();
    let queue_dir = dir.join(QUEUE);
    let mut queue = Queue::open(&queue_dir).map_err(unreadable(&queue_dir))?;
    let snapshots = outbox_dir.dir().join("snapshots");
    let names = outbox_dir.dir().join("names");
    let mut unnamed = records(&snapshots).map_err(unreadable(&snapshots))?;
    unnamed.retain(|id| !queue.has(*id));
    for (path, name) in names_in(&names).map_err(unreadable(&names))? {
        if queue.claims(&name) {
            continue;
        }
        match read_name(&path, &name) {
            Ok(None) => {}
            Ok(Some(record)) => {
                unnamed.retain(|id| *id != record.id);
                let claim = Claim { before: outbox_dir.seen(&name), name };
                let sealed = Moment {
                    unix_s: record.updated,
                    unix_ns: record.updated_ns,
                    boot: String::new(),
                    since_boot_ms: 0,
                };
                queue.push(record.id, Some(claim), sealed).map_err(unreadable(&queue_dir))?;
            }
            Err(why) => damaged.push(Damage { path, why }),
        }
    }
    for id in unnamed {
        queue.push(id, None, Moment::now()).map_err(unreadable(&queue_dir))?;
    }
    Ok((queue, damaged))
}

/// Rewrites a damaged or missing `store.json`: the directory's name proves which store it is for.
/// The damaged file is set aside. A file of a newer version is an error, and the outbox is left
/// alone.
fn repair_store(dir: &Path, store: &StoreRef) -> Result<(), Damage> {
    let path = dir.join(STORE);
    let failed = |error: io::Error| Damage { path: path.clone(), why: error.to_string() };
    match record::read::<StoreFile>(&path) {
        Ok(Some(file)) if file.store().url == store.url => return Ok(()),
        Ok(None) if is_empty(dir).map_err(failed)? => return Ok(()),
        Ok(None) => {}
        Err(error @ (RecordError::Newer { .. } | RecordError::Io { .. })) => {
            return Err(Damage { path: path.clone(), why: error.to_string() });
        }
        Ok(Some(_)) | Err(RecordError::Damaged { .. }) => {
            record::set_aside(&path).map_err(failed)?;
        }
    }
    let store = StoreFile::of(store);
    tracing::warn!(path = %path.display(), "rewriting a damaged or missing file");
    record::write(&path, &store).map_err(failed)
}

/// Whether nothing was ever sealed into the outbox. Notes about names don't count.
fn is_empty(dir: &Path) -> io::Result<bool> {
    for part in [QUEUE, "objects"] {
        let mut entries = match fs::read_dir(dir.join(part)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        if entries.next().transpose()?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lists the snapshots with a record in `dir`, oldest first.
fn records(dir: &Path) -> io::Result<Vec<SnapshotId>> {
    let mut found: Vec<(SystemTime, SnapshotId)> = Vec::new();
    let mut known = BTreeSet::new();
    for (path, stem) in files(dir)? {
        let Ok(id) = stem.parse::<SnapshotId>() else { continue };
        if known.insert(id) {
            found.push((fs::symlink_metadata(&path)?.modified()?, id));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

fn names_in(dir: &Path) -> io::Result<Vec<(std::path::PathBuf, Name)>> {
    let named = |(path, stem): (std::path::PathBuf, String)| {
        Some((path, stem.replace(',', "/").parse().ok()?))
    };
    Ok(files(dir)?.into_iter().filter_map(named).collect())
}

/// Lists the JSON files in `dir`, each with its stem.
fn files(dir: &Path) -> io::Result<Vec<(std::path::PathBuf, String)>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
        if let Some(stem) = stem {
            let stem = stem.to_owned();
            found.push((path, stem));
        }
    }
    found.sort();
    Ok(found)
}

fn read_name(path: &Path, name: &Name) -> Result<Option<NameRecord>, String> {
    let bytes = record::read_bytes(path, NAME_LEN_MAX).map_err(|error| error.to_string())?;
    let Some(bytes) = bytes else { return Ok(None) };
    let record: NameRecord = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if record.name == *name { Ok(Some(record)) } else { Err("it is about another name".to_owned()) }
}
