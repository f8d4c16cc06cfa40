//! Makes a snapshot from a source: import, pack, publish.

use std::collections::BTreeMap;
use std::sync::mpsc;

use inlay_store::format::packed::Effort;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::{PackOptions, PackStats, Packer};
use inlay_store::remote::{Name, PutOutcome, SnapshotRecord};

use super::error::SnapshotError;
use super::known::known_chunks;
use super::publish::{Draft, publish};
use super::resolve::resolve;
use super::upload::Uploader;
use crate::host::Host;
use crate::import::{self, ImportOptions, Progress, Source};

/// Which earlier snapshot a new one is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    /// The one that the name stood for before, if it stood for one.
    Automatic,
    /// None.
    None,
    /// This one: a name or an id.
    Given(String),
}

/// How a snapshot is made.
#[derive(Debug)]
pub struct CreateOptions {
    /// What it is of.
    pub kind: Kind,
    /// The name that shall stand for it.
    pub name: Option<Name>,
    /// The earlier snapshot that it comes from.
    pub parent: Parent,
    /// Other snapshots whose chunks need not be stored again.
    pub dedup: Vec<String>,
    /// The user's remarks.
    pub labels: BTreeMap<String, String>,
    /// How the source is read.
    pub import: ImportOptions,
    /// How files are packed.
    pub pack: PackOptions,
}

/// What came of it.
#[derive(Debug)]
pub struct Created {
    /// The snapshot's record.
    pub record: SnapshotRecord,
    /// What packing did.
    pub stats: PackStats,
    /// Blobs that were uploaded now.
    pub uploaded: usize,
    /// Blobs that the store had from an earlier, unfinished import.
    pub already_there: usize,
}

/// Imports `source` into the host's store. Nothing is visible before all is there.
pub fn create(
    host: &Host,
    source: &Source,
    options: &CreateOptions,
    progress: &dyn Progress,
) -> Result<Created, SnapshotError> {
    let parent = parent_of(host, options)?;
    let mut compare: Vec<SnapshotId> = parent.into_iter().collect();
    for reference in &options.dedup {
        compare.push(host.wait(resolve(host.remote(), reference))?);
    }
    let chunks_max = options.pack.known_chunks_max;
    let known = host.wait(known_chunks(host.remote(), host.state(), &compare, chunks_max))?;
    let (tally, outcomes) = mpsc::channel();
    let uploader = Uploader::new(host.remote().clone(), host.handle().clone(), tally);
    let mut packer = Packer::new(options.pack, known, Box::new(uploader))?;
    let imported = import::import(source, &options.import, &mut packer, progress);
    let imported = match imported {
        Ok(imported) => imported,
        // What stopped the packer is the cause of the importer's failure.
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
    };
    let record = publish(host.site(), &draft, options.name.as_ref())?;
    let (mut uploaded, mut already_there) = (0, 0);
    for outcome in outcomes.try_iter() {
        match outcome {
            PutOutcome::Written => uploaded += 1,
            PutOutcome::AlreadyThere => already_there += 1,
        }
    }
    Ok(Created { record, stats: groups.stats, uploaded, already_there })
}

fn parent_of(host: &Host, options: &CreateOptions) -> Result<Option<SnapshotId>, SnapshotError> {
    match (&options.parent, &options.name) {
        (Parent::Given(reference), _) => Ok(Some(host.wait(resolve(host.remote(), reference))?)),
        (Parent::Automatic, Some(name)) => {
            Ok(host.wait(host.remote().name(name))?.map(|record| record.id))
        }
        (Parent::Automatic, None) | (Parent::None, _) => Ok(None),
    }
}
