//! Runs a capture from start to end.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::inject::{self, Step};
use inlay_images::import::{Phase, Progress};
use inlay_snapshots::host::Site;
use inlay_snapshots::{
    Draft, SnapshotError, Unreadable, Uploader, Written, add_to, known_chunks, open_index, set_name,
};
use inlay_store::format::packed::Effort;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::{Adopter, Packer};
use inlay_store::remote::{Existing, ObjectKey, SnapshotRecord};
use inlay_store::tree::{NodeId, TreeLimits};

use super::build::{Builder, Earlier, Packed, Parts, Taken};
use super::collect::{Collector, Common, FileAside, LazyPacker, Task};
use super::error::CaptureError;
use super::exclude::Exclude;
use super::files::Shelf;
use super::last;
use super::lineage::ViewDirectory;
use super::mapped::Mapped;
use super::merged_view::{Mounted, Picture};
use super::options::{Cancel, CaptureOptions, CaptureParent, CaptureStats, Captured, Promise};
use super::previous_scan::{PendingScan, Seeing, Seen};
use super::scan::{Scanner, Strictness};
use super::subject::{LeftOut, LeftOutWhy, Plan, Stood, Subject, Underneath};
use super::walk::{Wanted, walk};

/// The number of attempts to freeze the subject for a complete scan, and the pause after a failed
/// one.
const STILL_TRIES: u32 = 5;
const STILL_PAUSE: Duration = Duration::from_millis(100);
/// The maximum number of runs of a capture, which restarts when mounts have changed meanwhile.
const RUNS: u32 = 3;
/// The maximum number of scans before the freeze.
const ROUNDS_MAX: u32 = 3;
/// If a scan has found less than this to read, the next one is under the freeze.
const FEW_BYTES: u64 = 16 << 20;
const FEW_FILES: u64 = 500;

/// Captures `subject` into the store of `site`. When this returns, the snapshot is complete as
/// defined by the [`Promise`]. Blocks; must not be called on a runtime thread. The subject is
/// always thawed.
pub fn capture(
    site: Site<'_>,
    subject: &dyn Subject,
    options: &CaptureOptions,
    progress: &dyn Progress,
) -> Result<Captured, CaptureError> {
    if !matches!(options.kind, Kind::Directory | Kind::Filesystem) {
        return Err(CaptureError::Kind(options.kind));
    }
    progress.phase(Phase::Reading, &options.source);
    let exclude = Exclude::new(&options.exclude)?;
    let mut left = RUNS;
    loop {
        left -= 1;
        match once(site, subject, options, progress, &exclude) {
            Err(CaptureError::Remounted) if left > 0 && !options.cancel.is_cancelled() => {}
            other => return other,
        }
    }
}

fn once(
    site: Site<'_>,
    subject: &dyn Subject,
    options: &CaptureOptions,
    progress: &dyn Progress,
    exclude: &Exclude,
) -> Result<Captured, CaptureError> {
    let plan = plan_of(subject)?;
    let mut run = Run::new(site, options, progress, exclude, &plan)?;
    let begun = Instant::now();
    let picture = run.ahead(subject, plan)?;
    run.stats.times.ahead = begun.elapsed();
    let (picture, frozen) = run.still(subject, &picture)?;
    run.finish(&picture, frozen)
}

fn plan_of(subject: &dyn Subject) -> Result<Plan, CaptureError> {
    subject.plan().map_err(CaptureError::subject("finding out what is to be captured"))
}

/// A capture in progress.
struct Run<'a> {
    site: Site<'a>,
    options: &'a CaptureOptions,
    progress: &'a dyn Progress,
    exclude: &'a Exclude,
    /// The identity of the captured directory.
    place: ViewDirectory,
    /// Where the seen file of this capture is written.
    seen_path: Option<PathBuf>,
    seen: Seen,
    /// The last snapshot of the same directory.
    last: Option<Known>,
    packer: Option<Packer>,
    packed: Packed,
    mapped: Mapped,
    stats: CaptureStats,
}

impl<'a> Run<'a> {
    fn new(
        site: Site<'a>,
        options: &'a CaptureOptions,
        progress: &'a dyn Progress,
        exclude: &'a Exclude,
        plan: &Plan,
    ) -> Result<Self, CaptureError> {
        let place = ViewDirectory::find(options.kind, plan)?;
        let seen_paths: Vec<PathBuf> = match &options.seen_dir {
            Some(dir) => place.names().map(|name| Seen::path(dir, &name)).collect(),
            None => Vec::new(),
        };
        let found = seen_paths.iter().map(|path| Seen::read(path));
        let mut seen = found.into_iter().find(|seen| seen.snapshot().is_some()).unwrap_or_default();
        let last = match (seen.snapshot(), options.promise) {
            (None, _) => None,
            (Some(id), Promise::Durable) => known_in_store(site, id)?,
            (Some(id), Promise::Sealed) => {
                Some(Known { id, record: seen_paths.iter().find_map(|path| last::read(path, id)) })
            }
        };
        let last = match last {
            None => None,
            Some(last) => match site.wait(open_index(site.remote, site.state, last.id)) {
                Ok(index) => {
                    seen.open(index);
                    Some(last)
                }
                // A request to the store would break the promise of sealing: read everything again.
                Err(error) if options.promise == Promise::Sealed => {
                    tracing::debug!(snapshot = %last.id, %error, "can't use the previous scan; reading all files");
                    None
                }
                Err(error) => return Err(error.into()),
            },
        };
        Ok(Self {
            site,
            options,
            progress,
            exclude,
            place,
            seen_path: seen_paths.into_iter().next(),
            seen,
            last,
            packer: None,
            packed: HashMap::new(),
            mapped: Mapped::default(),
            stats: CaptureStats::default(),
        })
    }

    fn scan(
        &self,
        plan: Plan,
        (strictness, cancel): (Strictness, &Cancel),
        before: Option<&Picture>,
    ) -> Result<Picture, CaptureError> {
        let scanner = Scanner {
            exclude: self.exclude,
            seen: &self.seen,
            cancel,
            entries_max: self.options.limits.entries.into(),
            strictness,
            entries: AtomicU64::new(0),
        };
        Picture::scan(plan, &scanner, before)
    }

    fn note_mapped(&mut self, subject: &dyn Subject) -> Result<(), CaptureError> {
        let pids = subject
            .processes()
            .map_err(CaptureError::subject("finding out which processes there are"))?;
        self.mapped.add(&pids);
        Ok(())
    }

    /// Reads and packs changed files while the subject is running.
    fn ahead(&mut self, subject: &dyn Subject, plan: Plan) -> Result<Picture, CaptureError> {
        self.note_mapped(subject)?;
        let cancel = &self.options.cancel;
        let mut picture = self.scan(plan, (Strictness::Loose, cancel), None)?;
        loop {
            self.stats.rounds += 1;
            let (files, bytes) = self.pack(&picture)?;
            let few = bytes < FEW_BYTES && files < FEW_FILES;
            if few || self.stats.rounds >= ROUNDS_MAX {
                return Ok(picture);
            }
            self.note_mapped(subject)?;
            let plan = plan_of(subject)?;
            picture = self.scan(plan, (Strictness::Loose, cancel), Some(&picture))?;
        }
    }

    /// Passes every file with unknown content to `task`. Returns the number of files and bytes.
    fn collect(
        &mut self,
        picture: &Picture,
        task: &mut Task<'_>,
        cancel: &Cancel,
    ) -> Result<(u64, u64), CaptureError> {
        let Self { options, progress, exclude, packed, mapped, .. } = self;
        let CaptureOptions { limits, .. } = options;
        let common = Common { mapped, limits, cancel, progress: *progress };
        let mut collector = Collector::new(picture, packed, common, task);
        walk(picture, exclude, Wanted::Changes, (), &mut collector)?;
        Ok((collector.files, collector.bytes))
    }

    /// Packs every file with unknown content. Returns the number of files and bytes.
    fn pack(&mut self, picture: &Picture) -> Result<(u64, u64), CaptureError> {
        let compare = self.compare(picture);
        let (site, options) = (self.site, self.options);
        let make = move || new_packer(site, options, &compare);
        let mut task =
            Task::Pack(LazyPacker { packer: self.packer.take().map(Box::new), make: &make });
        let collected = self.collect(picture, &mut task, &options.cancel);
        let packer = match task {
            Task::Pack(LazyPacker { packer, .. }) => packer.map(|packer| *packer),
            Task::SetAside(..) => None,
        };
        let (files, bytes) = match (collected, packer) {
            (Ok(collected), packer) => {
                self.packer = packer;
                collected
            }
            (Err(error), Some(packer)) => return Err(cause(packer, error)),
            (Err(error), None) => return Err(error),
        };
        self.stats.files_read += files;
        self.stats.bytes_read += bytes;
        Ok((files, bytes))
    }

    /// Returns the snapshots that chunks are deduplicated against.
    fn compare(&self, picture: &Picture) -> Vec<SnapshotId> {
        let mut compare: Vec<SnapshotId> = self.last.iter().map(|last| last.id).collect();
        compare.extend(picture.lowers().map(|lower| lower.id));
        compare
    }

    /// Sets aside what has changed since, under a freeze. Retries if the freeze did not hold.
    fn still(
        &mut self,
        subject: &dyn Subject,
        before: &Picture,
    ) -> Result<(Picture, Duration), CaptureError> {
        let mut left = STILL_TRIES;
        let (picture, asides, duration) = loop {
            left -= 1;
            let frozen = subject.freeze().map_err(CaptureError::subject("freezing it"))?;
            let cancel = self.options.cancel.or_after(frozen.until());
            let taken = self.set_aside(subject, before, &cancel);
            let thawed = frozen.thaw().map_err(CaptureError::subject("letting it go on"))?;
            match (taken, thawed.stood) {
                (_, Stood::TooLong) => return Err(CaptureError::TooLong { limit: thawed.frozen }),
                (Err(CaptureError::Cancelled), _) if !self.options.cancel.is_cancelled() => {
                    return Err(CaptureError::TooLong { limit: thawed.frozen });
                }
                (_, Stood::Interrupted) if left == 0 => return Err(CaptureError::Interrupted),
                (_, Stood::Interrupted) => {}
                // A writer outside of the subject, e.g. the creation of a mount point.
                (Err(CaptureError::Changed { .. }), Stood::Throughout) if left > 0 => {}
                (taken, Stood::Throughout) => {
                    let (picture, asides) = taken?;
                    break (picture, asides, thawed.frozen);
                }
            }
            if self.options.cancel.is_cancelled() {
                return Err(CaptureError::Cancelled);
            }
            thread::sleep(STILL_PAUSE);
        };
        inject::point(Step::SandboxThawed).map_err(|source| CaptureError::Io {
            path: self.site.state.scratch().to_owned(),
            source,
        })?;
        if asides.is_empty() {
            return Ok((picture, duration));
        }
        let begun = Instant::now();
        let mut packer = match self.packer.take() {
            Some(packer) => packer,
            None => new_packer(self.site, self.options, &self.compare(&picture))?,
        };
        for FileAside { id, path, aside } in asides {
            if self.options.cancel.is_cancelled() {
                return Err(CaptureError::Cancelled);
            }
            self.stats.files_set_aside += 1;
            self.stats.files_read += 1;
            self.stats.bytes_read += aside.data_len();
            match aside.pack(&mut packer) {
                Ok(content) => drop(self.packed.insert(id, (aside.stamp, content))),
                Err(failure) => return Err(cause(packer, failure.error(path))),
            }
        }
        self.packer = Some(packer);
        self.stats.times.aside = begun.elapsed();
        Ok((picture, duration))
    }

    fn set_aside(
        &mut self,
        subject: &dyn Subject,
        before: &Picture,
        cancel: &Cancel,
    ) -> Result<(Picture, Vec<FileAside>), CaptureError> {
        self.note_mapped(subject)?;
        let plan = plan_of(subject)?;
        let picture = self.scan(plan, (Strictness::Strict, cancel), Some(before))?;
        if !ViewDirectory::of(self.options.kind, &picture)?.goes_on_from(&self.place) {
            return Err(CaptureError::Remounted);
        }
        let shelf = Shelf::new(self.site.state.scratch());
        let mut task = Task::SetAside(shelf, Vec::new());
        self.collect(&picture, &mut task, cancel)?;
        match task {
            Task::SetAside(_, asides) => Ok((picture, asides)),
            Task::Pack(_) => Ok((picture, Vec::new())),
        }
    }

    /// Builds the snapshot and publishes it.
    fn finish(mut self, picture: &Picture, frozen: Duration) -> Result<Captured, CaptureError> {
        let lower = self.check_lowers(picture)?;
        let mut packer = match self.packer.take() {
            Some(packer) => packer,
            // Nothing to pack, so nothing to deduplicate.
            None => new_packer(self.site, self.options, &[])?,
        };
        let begun = Instant::now();
        let mut earlier = Earlier {
            last: self.seen.index().map(Adopter::new),
            lower: picture.mounts.iter().map(Mounted::adopter).collect(),
        };
        let limits = TreeLimits { entries: self.options.limits.entries, ..TreeLimits::default() };
        let parts = Parts {
            picture,
            packer: &mut packer,
            earlier: &mut earlier,
            packed: &self.packed,
            mapped: &self.mapped,
            progress: self.progress,
        };
        let mut builder = Builder::new(parts, limits);
        builder.root()?;
        walk(picture, self.exclude, Wanted::All, NodeId::ROOT, &mut builder)?;
        let built = builder.finish();
        if self.options.cancel.is_cancelled() {
            return Err(CaptureError::Cancelled);
        }
        self.stats.times.build = begun.elapsed();
        let begun = Instant::now();
        let groups = packer.finish()?;
        // Waiting for the store may have taken arbitrarily long.
        if self.options.cancel.is_cancelled() {
            return Err(CaptureError::Cancelled);
        }
        self.stats.times.blobs = begun.elapsed();
        self.stats.entries = built.entries;
        self.stats.stored_bytes = groups.stats.stored_bytes;
        self.stats.blobs = groups.stats.blobs;
        let config = match (self.options.kind, &picture.plan.view.lower) {
            (Kind::Filesystem, Some(lower)) => lower.index.config(),
            _ => &[],
        };
        let draft = Draft {
            kind: self.options.kind,
            tree: &built.tree,
            groups: &groups,
            config,
            source: self.options.source.clone(),
            parent: self.parent(lower.as_ref().map(|lower| lower.id)),
            labels: self.options.labels.clone(),
            ttl_s: self.options.ttl.map(|ttl| ttl.as_secs()),
            effort: Effort::Quick,
            existing: Existing::default(),
        };
        let Published { record, unchanged, scan } = self.publish(&draft, &built.taken, lower)?;
        let mut left_out = left_out_of(&picture.plan);
        left_out.extend(built.left_out);
        let left_out_more = built.left_out_more;
        let stats = self.stats;
        let mut captured =
            Captured { record, stats, frozen, left_out, left_out_more, unchanged, scan };
        match self.options.promise {
            Promise::Durable => captured.remember(),
            // Not in a queue yet: if its caller fails now, the snapshot is discarded.
            Promise::Sealed => {}
        }
        Ok(captured)
    }

    fn publish(
        &mut self,
        draft: &Draft<'_>,
        taken: &[Taken],
        lower: Option<Known>,
    ) -> Result<Published, CaptureError> {
        let begun = Instant::now();
        let written = Written::new(self.site, draft)?;
        self.stats.times.write = begun.elapsed();
        let begun = Instant::now();
        let mut seeing = Seeing::default();
        for Taken { id, stamp, node } in taken {
            if let Some(inode) = written.numbering().inode(*node) {
                seeing.add(*id, stamp, inode);
            }
        }
        let name = self.options.name.as_ref();
        let known: Vec<Known> = self
            .last
            .iter()
            .cloned()
            .chain(lower)
            .filter(|known| known.id == written.id())
            .collect();
        let unchanged = !known.is_empty();
        // The last chance to cancel: from here on the snapshot may become visible.
        if self.options.cancel.is_cancelled() {
            return Err(CaptureError::Cancelled);
        }
        let record = match known.into_iter().find_map(|known| known.record) {
            Some(known) => {
                let record = add_to(self.site, draft, known)?;
                if let Some(name) = name {
                    set_name(self.site, name, record.id)?;
                }
                record
            }
            None => written.publish(self.site, draft, name)?,
        };
        let scan = self.seen_path.take().map(|path| PendingScan::new(seeing, path));
        self.stats.times.publish = begun.elapsed();
        Ok(Published { record, unchanged, scan })
    }

    fn parent(&self, lower: Option<SnapshotId>) -> Option<SnapshotId> {
        match (self.options.parent, self.options.kind) {
            (CaptureParent::None, _) => None,
            (CaptureParent::Given(id), _) => Some(id),
            (CaptureParent::Automatic, Kind::Directory) => {
                self.last.as_ref().map(|last| last.id).or(lower)
            }
            (CaptureParent::Automatic, _) => lower,
        }
    }

    /// Ensures that the store has everything the new snapshot refers to. Returns the lower snapshot
    /// of the captured directory if it is there.
    fn check_lowers(&self, picture: &Picture) -> Result<Option<Known>, CaptureError> {
        let own = picture.plan.view.lower.as_ref().map(|lower| lower.id);
        if self.options.promise == Promise::Sealed {
            // They are mounted from the store, or wait to be shipped to it.
            return Ok(own.map(|id| Known { id, record: None }));
        }
        let mut own_record = None;
        let mut checked = Vec::new();
        for lower in picture.lowers() {
            if checked.contains(&lower.id) {
                continue;
            }
            let record = known_in_store(self.site, lower.id)?;
            // A snapshot without blobs of its own need not be in the store.
            if record.is_none() && lower.index.blob_count() > 0 {
                let store = self.site.remote.description().to_owned();
                return Err(CaptureError::LowerElsewhere { id: lower.id, store });
            }
            checked.push(lower.id);
            if own == Some(lower.id) {
                own_record = record;
            }
        }
        Ok(own_record)
    }
}

/// Creates a packer that knows the chunks of the snapshots `compare`.
fn new_packer(
    site: Site<'_>,
    options: &CaptureOptions,
    compare: &[SnapshotId],
) -> Result<Packer, CaptureError> {
    let Site { remote, state, runtime } = site;
    let chunks_max = options.pack.known_chunks_max;
    let unreadable = match options.promise {
        Promise::Durable => Unreadable::Fail,
        Promise::Sealed => Unreadable::Skip,
    };
    let known = site.wait(known_chunks(remote, state, compare, chunks_max, unreadable))?;
    // The packer counts them itself.
    let (tally, _) = mpsc::channel();
    let uploader = Uploader::new(remote.clone(), runtime.clone(), tally);
    Ok(Packer::new(options.pack, known, Box::new(uploader))?)
}

/// Replaces an error that resulted from a failure of the packer by that failure.
fn cause(packer: Packer, error: CaptureError) -> CaptureError {
    match error {
        CaptureError::Pack { .. } => match packer.finish() {
            Err(cause) => cause.into(),
            Ok(_) => error,
        },
        other => other,
    }
}

/// A snapshot whose objects are written.
struct Published {
    record: SnapshotRecord,
    unchanged: bool,
    scan: Option<PendingScan>,
}

/// A snapshot in the store or on its way there.
#[derive(Debug, Clone)]
struct Known {
    id: SnapshotId,
    /// Its record, unless that has yet to be written to the store.
    record: Option<SnapshotRecord>,
}

/// Looks up a snapshot in the store; without a record if it is still to be shipped. `None` if it is
/// in neither place.
fn known_in_store(site: Site<'_>, id: SnapshotId) -> Result<Option<Known>, CaptureError> {
    let stored = site.wait(site.remote.stored_snapshot(&id)).map_err(SnapshotError::from)?;
    let waits = || {
        let key = ObjectKey::Record(id);
        site.remote
            .outbox_dir()
            .is_some_and(|outbox_dir| outbox_dir.is_used() && outbox_dir.file(&key).exists())
    };
    Ok(match stored {
        Some(record) => Some(Known { id, record: Some(record) }),
        None if waits() => Some(Known { id, record: None }),
        None => None,
    })
}

/// Returns what the plan leaves out, including the grafts inside of it.
fn left_out_of(plan: &Plan) -> Vec<LeftOut> {
    let mut left_out = plan.left_out.clone();
    for graft in &plan.grafts {
        let around = plan.left_out.iter().find(|left_out| {
            left_out.underneath == Underneath::Empty && graft.at.starts_with(&left_out.path)
        });
        if let Some(around) = around {
            let why = LeftOutWhy::Inside(around.path.clone());
            let underneath = Underneath::Empty;
            left_out.push(LeftOut { path: graft.at.clone(), why, underneath });
        }
    }
    left_out
}
