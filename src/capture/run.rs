//! A capture from its beginning to its end.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use inlay_store::format::packed::Effort;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::{Adopter, Packer};
use inlay_store::remote::SnapshotRecord;
use inlay_store::tree::{NodeId, TreeLimits};

use super::build::{Builder, Earlier, Packed, Parts, Taken};
use super::collect::{Collector, Common, FileAside, LazyPacker, Task};
use super::error::CaptureError;
use super::exclude::Exclude;
use super::files::Shelf;
use super::mapped::Mapped;
use super::options::{CaptureOptions, CaptureParent, CaptureStats, Captured};
use super::picture::{Mounted, Picture};
use super::scan::{Scanner, Strictness};
use super::seen::{Seeing, Seen};
use super::subject::{LeftOut, LeftOutWhy, Plan, Subject, Underneath};
use super::walk::{Wanted, walk};
use crate::host::Site;
use crate::import::{Phase, Progress};
use crate::inject::{self, Step};
use crate::snapshots::{
    Draft, SnapshotError, Uploader, Written, known_chunks, open_index, set_name,
};

/// How often everything is looked at before the subject is frozen, at most.
const ROUNDS_MAX: u32 = 3;
/// With less than this to read in a round, the next one is the one that freezes.
const FEW_BYTES: u64 = 16 << 20;
const FEW_FILES: u64 = 500;

/// Takes a snapshot of `subject` into the store of `site`, which is durable there when this returns.
/// Blocks; not to be called on a thread of the runtime. The subject is thawed whatever happens.
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
    let plan = plan_of(subject)?;
    let mut run = Run::new(site, options, progress, &exclude, &plan)?;
    let begun = Instant::now();
    let picture = run.ahead(subject, plan)?;
    run.stats.times.ahead = begun.elapsed();
    let (picture, frozen) = run.still(subject, &picture)?;
    run.finish(&picture, frozen)
}

fn plan_of(subject: &dyn Subject) -> Result<Plan, CaptureError> {
    subject.plan().map_err(CaptureError::subject("finding out what is to be captured"))
}

/// A capture under way.
struct Run<'a> {
    site: Site<'a>,
    options: &'a CaptureOptions,
    progress: &'a dyn Progress,
    exclude: &'a Exclude,
    seen_path: Option<PathBuf>,
    seen: Seen,
    /// The last snapshot of the same place.
    last: Option<SnapshotRecord>,
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
        let seen_path =
            options.seen_dir.as_deref().map(|dir| Seen::path(dir, &place_of(options.kind, plan)));
        let mut seen = seen_path.as_deref().map(Seen::read).unwrap_or_default();
        let last = match seen.snapshot() {
            None => None,
            Some(id) => record_of(site, id)?,
        };
        if let Some(last) = &last {
            seen.open(site.wait(open_index(site.remote, site.state, last.id))?);
        }
        Ok(Self {
            site,
            options,
            progress,
            exclude,
            seen_path,
            seen,
            last,
            packer: None,
            packed: HashMap::new(),
            mapped: Mapped::default(),
            stats: CaptureStats::default(),
        })
    }

    fn look(
        &self,
        plan: Plan,
        strictness: Strictness,
        before: Option<&Picture>,
    ) -> Result<Picture, CaptureError> {
        let scanner = Scanner {
            exclude: self.exclude,
            seen: &self.seen,
            cancel: &self.options.cancel,
            entries_max: self.options.limits.entries.into(),
            strictness,
            entries: AtomicU64::new(0),
        };
        Picture::look(plan, &scanner, before)
    }

    fn note_mapped(&mut self, subject: &dyn Subject) -> Result<(), CaptureError> {
        let pids = subject
            .processes()
            .map_err(CaptureError::subject("finding out which processes there are"))?;
        self.mapped.add(&pids);
        Ok(())
    }

    /// Reads and packs what changed while the subject goes on.
    fn ahead(&mut self, subject: &dyn Subject, plan: Plan) -> Result<Picture, CaptureError> {
        self.note_mapped(subject)?;
        let mut picture = self.look(plan, Strictness::Loose, None)?;
        loop {
            self.stats.rounds += 1;
            let (files, bytes) = self.pack(&picture)?;
            let few = bytes < FEW_BYTES && files < FEW_FILES;
            if few || self.stats.rounds >= ROUNDS_MAX {
                return Ok(picture);
            }
            self.note_mapped(subject)?;
            picture = self.look(plan_of(subject)?, Strictness::Loose, Some(&picture))?;
        }
    }

    /// Gives every file whose bytes are not known to `task`. Returns how many files and bytes.
    fn collect(
        &mut self,
        picture: &Picture,
        task: &mut Task<'_>,
    ) -> Result<(u64, u64), CaptureError> {
        let Self { options, progress, exclude, packed, mapped, .. } = self;
        let CaptureOptions { limits, cancel, .. } = options;
        let common = Common { mapped, limits, cancel, progress: *progress };
        let mut collector = Collector::new(picture, packed, common, task);
        walk(picture, exclude, Wanted::Changes, (), &mut collector)?;
        Ok((collector.files, collector.bytes))
    }

    /// Packs every file whose bytes are not known. Returns how many files and bytes.
    fn pack(&mut self, picture: &Picture) -> Result<(u64, u64), CaptureError> {
        let compare = self.compare(picture);
        let (site, options) = (self.site, self.options);
        let make = move || new_packer(site, options, &compare);
        let mut task =
            Task::Pack(LazyPacker { packer: self.packer.take().map(Box::new), make: &make });
        let collected = self.collect(picture, &mut task);
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

    /// The snapshots whose chunks need not be stored again.
    fn compare(&self, picture: &Picture) -> Vec<SnapshotId> {
        let mut compare: Vec<SnapshotId> = self.last.iter().map(|last| last.id).collect();
        compare.extend(picture.lowers().map(|lower| lower.id));
        compare
    }

    /// Takes what changed since, while nothing moves.
    fn still(
        &mut self,
        subject: &dyn Subject,
        before: &Picture,
    ) -> Result<(Picture, Duration), CaptureError> {
        let begun = Instant::now();
        let frozen = subject.freeze().map_err(CaptureError::subject("freezing it"))?;
        let taken = self.set_aside(subject, before);
        let thawed = frozen.thaw().map_err(CaptureError::subject("letting it go on"));
        let duration = begun.elapsed();
        let (picture, asides) = taken?;
        thawed?;
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
    ) -> Result<(Picture, Vec<FileAside>), CaptureError> {
        self.note_mapped(subject)?;
        let plan = plan_of(subject)?;
        let picture = self.look(plan, Strictness::Strict, Some(before))?;
        let shelf = Shelf::new(self.site.state.scratch());
        let mut task = Task::SetAside(shelf, Vec::new());
        self.collect(&picture, &mut task)?;
        match task {
            Task::SetAside(_, asides) => Ok((picture, asides)),
            Task::Pack(_) => Ok((picture, Vec::new())),
        }
    }

    /// Puts the snapshot together and publishes it.
    fn finish(mut self, picture: &Picture, frozen: Duration) -> Result<Captured, CaptureError> {
        let lower = self.check_lowers(picture)?;
        let mut packer = match self.packer.take() {
            Some(packer) => packer,
            // Nothing has to be packed, so nothing has to be compared.
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
        };
        let (record, unchanged) = self.publish(&draft, &built.taken, lower)?;
        let mut left_out = left_out_of(&picture.plan);
        left_out.extend(built.left_out);
        let left_out_more = built.left_out_more;
        Ok(Captured { record, stats: self.stats, frozen, left_out, left_out_more, unchanged })
    }

    fn publish(
        &mut self,
        draft: &Draft<'_>,
        taken: &[Taken],
        lower: Option<SnapshotRecord>,
    ) -> Result<(SnapshotRecord, bool), CaptureError> {
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
        let mut known = self.last.iter().cloned().chain(lower);
        let (record, unchanged) = match known.find(|known| known.id == written.id()) {
            Some(known) => {
                if let Some(name) = name {
                    set_name(self.site, name, known.id)?;
                }
                (known, true)
            }
            None => (written.publish(self.site, draft, name)?, false),
        };
        if let Some(path) = &self.seen_path
            && let Err(error) = seeing.write(record.id, path)
        {
            // What is there is of an older snapshot, which is right, too.
            tracing::warn!(path = %path.display(), %error, "the next snapshot will take longer");
        }
        self.stats.times.publish = begun.elapsed();
        Ok((record, unchanged))
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

    /// Makes sure that the store has what the new snapshot will refer to. Returns the record of the
    /// snapshot below the captured directory, if it is there.
    fn check_lowers(&self, picture: &Picture) -> Result<Option<SnapshotRecord>, CaptureError> {
        let own = picture.plan.view.lower.as_ref().map(|lower| lower.id);
        let mut own_record = None;
        let mut checked = Vec::new();
        for lower in picture.lowers() {
            if checked.contains(&lower.id) {
                continue;
            }
            let record = record_of(self.site, lower.id)?;
            // One without contents of its own need not be anywhere.
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

/// A packer that knows what the snapshots `compare` hold.
fn new_packer(
    site: Site<'_>,
    options: &CaptureOptions,
    compare: &[SnapshotId],
) -> Result<Packer, CaptureError> {
    let Site { remote, state, runtime } = site;
    let chunks_max = options.pack.known_chunks_max;
    let known = site.wait(known_chunks(remote, state, compare, chunks_max))?;
    // Nobody counts them: the packer does.
    let (tally, _) = mpsc::channel();
    let uploader = Uploader::new(remote.clone(), runtime.clone(), tally);
    Ok(Packer::new(options.pack, known, Box::new(uploader))?)
}

/// What stopped the packer is the cause of an error that came of it.
fn cause(packer: Packer, error: CaptureError) -> CaptureError {
    match error {
        CaptureError::Pack { .. } => match packer.finish() {
            Err(cause) => cause.into(),
            Ok(_) => error,
        },
        other => other,
    }
}

/// The record of a snapshot; none, if the store does not have it.
fn record_of(site: Site<'_>, id: SnapshotId) -> Result<Option<SnapshotRecord>, CaptureError> {
    match site.wait(site.remote.snapshot(&id)) {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(SnapshotError::from(error).into()),
    }
}

/// Names what is captured: a place of a sandbox, and as what.
fn place_of(kind: Kind, plan: &Plan) -> Vec<u8> {
    let mut name = kind.prefix().as_bytes().to_vec();
    name.push(0);
    match (&plan.view.upper, &plan.view.lower) {
        (Some(upper), _) => name.extend_from_slice(upper.as_os_str().as_encoded_bytes()),
        (None, Some(lower)) => name.extend_from_slice(lower.id.to_string().as_bytes()),
        (None, None) => {}
    }
    name.push(0);
    name.extend_from_slice(plan.path.as_os_str().as_encoded_bytes());
    name
}

/// What the plan leaves out, and the grafts that go with it.
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
