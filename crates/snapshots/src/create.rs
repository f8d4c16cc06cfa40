//! Creates a snapshot from a source: import, pack, publish.

use std::collections::BTreeMap;
use std::sync::mpsc;

use inlay_images::import::{self, ImportOptions, Progress, Source};
use inlay_store::format::packed::Effort;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::{KnownChunks, PackOptions, PackStats, Packer};
use inlay_store::remote::{Existing, Name, PutOutcome, SnapshotRecord};

use super::error::SnapshotError;
use super::known_chunks::{BlobCheck, known_chunks_checked};
use super::publish::{Draft, publish};
use super::resolve::resolve;
use super::upload::Uploader;
use crate::host::Host;

/// The earlier snapshot that a new one is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    /// The snapshot that the name refers to, if any.
    Automatic,
    /// None.
    None,
    /// The snapshot with this name or id.
    Given(String),
}

/// Options for creating a snapshot.
#[derive(Debug)]
pub struct CreateOptions {
    /// Kind of the snapshot.
    pub kind: Kind,
    /// Name to set.
    pub name: Option<Name>,
    /// Parent snapshot.
    pub parent: Parent,
    /// Further snapshots to deduplicate chunks against.
    pub dedup: Vec<String>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Options for reading the source.
    pub import: ImportOptions,
    /// Options for packing files.
    pub pack: PackOptions,
    /// Verification of objects that already exist in the store.
    pub existing: Existing,
}

/// Result of creating a snapshot.
#[derive(Debug)]
pub struct Created {
    /// Record of the snapshot.
    pub record: SnapshotRecord,
    /// Packing statistics.
    pub stats: PackStats,
    /// Number of blobs uploaded.
    pub uploaded: usize,
    /// Number of blobs that already existed in the store.
    pub already_there: usize,
    /// Number of damaged blobs in the store that were replaced.
    pub repaired: usize,
}

/// Imports `source` into the host's store. Nothing is visible before the snapshot is complete.
///
/// Damaged objects left in the store by an earlier import are rewritten, as far as `existing`
/// verifies them. In a local directory the blobs of the snapshots that the new one builds on are
/// read as well, since that costs no request.
pub fn create(
    host: &Host,
    source: &Source,
    options: &CreateOptions,
    progress: &dyn Progress,
) -> Result<Created, SnapshotError> {
    let parent = parent_of(host, options)?;
    let mut compare: Vec<SnapshotId> = parent.into_iter().collect();
    for reference in &options.dedup {
        compare.push(given(host, reference)?);
    }
    let known = known_to(host, options, &compare)?;
    let (tally, outcomes) = mpsc::channel();
    let uploader =
        Uploader::new(host.remote().clone(), host.handle().clone(), tally).with(options.existing);
    let mut packer = Packer::new(options.pack, known, Box::new(uploader))?;
    let imported = import::import(source, &options.import, &mut packer, progress);
    let imported = match imported {
        Ok(imported) => imported,
        // If the packer stopped, its error is the cause of the importer's failure.
        Err(error) => {
            packer.finish()?;
            return Err(error.into());
        }
    };
    let groups = packer.finish()?;
    let draft = Draft {
        kind: options.kind,
        tree: &imported.tree,
        groups: &groups,
        config: &imported.config,
        source: source.to_string(),
        parent,
        labels: options.labels.clone(),
        ttl_s: None,
        effort: Effort::Thorough,
        existing: options.existing,
    };
    let record = publish(host.site(), &draft, options.name.as_ref())?;
    let outcomes: Vec<PutOutcome> = outcomes.try_iter().collect();
    let count = |wanted| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    Ok(Created {
        record,
        stats: groups.stats,
        uploaded: count(PutOutcome::Written),
        already_there: count(PutOutcome::AlreadyThere),
        repaired: count(PutOutcome::Repaired),
    })
}

/// Returns the chunks of `compare`, which need not be stored again.
fn known_to(
    host: &Host,
    options: &CreateOptions,
    compare: &[SnapshotId],
) -> Result<KnownChunks, SnapshotError> {
    let check = match options.existing {
        Existing::Read => BlobCheck::Whole,
        Existing::Compared if host.remote().is_directory() => BlobCheck::Whole,
        Existing::Compared => BlobCheck::Table,
    };
    let chunks_max = options.pack.known_chunks_max;
    host.wait(known_chunks_checked(host.remote(), host.state(), compare, chunks_max, check))
}

/// Resolves `reference` to a snapshot that must be in the store.
fn given(host: &Host, reference: &str) -> Result<SnapshotId, SnapshotError> {
    let id = host.wait(resolve(host.remote(), reference))?;
    match host.wait(host.remote().snapshot(&id)) {
        Err(error) if error.is_not_found() => Err(SnapshotError::Unknown {
            reference: reference.to_owned(),
            store: host.remote().description().to_owned(),
        }),
        // A snapshot with a damaged record exists.
        Err(error) if !error.is_damage() => Err(error.into()),
        _ => Ok(id),
    }
}

fn parent_of(host: &Host, options: &CreateOptions) -> Result<Option<SnapshotId>, SnapshotError> {
    match (&options.parent, &options.name) {
        (Parent::Given(reference), _) => given(host, reference).map(Some),
        (Parent::Automatic, Some(name)) => match host.wait(host.remote().name(name)) {
            Ok(record) => Ok(record.map(|record| record.id)),
            // The name is rewritten at the end.
            Err(error) if error.is_damage() => {
                tracing::warn!(%name, %error, "treating the name as new");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        },
        (Parent::Automatic, None) | (Parent::None, _) => Ok(None),
    }
}
