//! The mounts of one daemon: made, found again after a restart, ended, and cleared up after.
//!
//! A mount ends in two steps. First it is gone from where users saw it, by whomever. Then, for a
//! writable one, its overlay's last user is gone: only then are its changes given up. Everything here
//! may wait for the disk, so none of it is called on a thread of the runtime.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use inlay_store::ids::{Digest, SnapshotId};
use parking_lot::Mutex;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::MountError;
use super::namespace::Namespace;
use super::overlay::{self, Layers};
use super::record::{MountRecord, PathText, View};
use super::registry::{Registry, make_private_dirs, remove_all};
use super::target::{Caller, Seen, Target, Umount};
use super::upper::{Changes, Keep, Upper, UpperPlace, WantedView};

/// How often a mount that is in use is tried again, and how long after each try.
///
/// Whoever has just closed a file may not be seen to have done so: another thread of that program
/// may be starting a process, which holds a copy of the file for a moment.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// How soon an overlay that is still in use is looked at again: twice as long after each look.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_LAST: Duration = Duration::from_secs(20);

/// How often mounts in other namespaces are looked for.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(2);

/// What keeps a snapshot served while something is mounted above it; dropped afterwards.
pub type Hold = Box<dyn Send + Sync>;

/// A slot that shows a snapshot, or a part of it.
pub struct Layer {
    /// Its number.
    pub slot: u32,
    /// Where it is seen below the host's FUSE mounts.
    pub dir: PathBuf,
    /// What keeps it there.
    pub hold: Hold,
}

/// What is to be mounted.
pub struct Wanted {
    /// The snapshot's id.
    pub snapshot: SnapshotId,
    /// What shows it.
    pub top: Layer,
    /// What shows the rest of it, below an overlay.
    pub below: Option<Layer>,
    /// How it is to be shown.
    pub view: WantedView,
}

impl Wanted {
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.top).chain(&self.below)
    }
}

/// How a mount was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmounted {
    /// What it was.
    pub record: MountRecord,
    /// Whether its changes are still written to by somebody.
    pub in_use: bool,
    /// Whether its changes were thrown away.
    pub discarded: bool,
}

/// The mounts of a state directory.
pub struct Mounts {
    state: PathBuf,
    session: String,
    registry: Registry,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    live: Vec<Live>,
    /// Mount points, in their namespaces, that something is about to be mounted on.
    claimed: HashSet<(u64, PathBuf)>,
    /// Mounts, by their numbers, that are over and are being cleared up after.
    finishing: HashSet<u64>,
}

impl Table {
    /// Whether something of a mount is still there.
    fn has(&self, seen: &Seen) -> bool {
        self.finishing.contains(&seen.number())
            || self.live.iter().any(|live| live.record.seen == *seen)
    }
}

struct Live {
    record: MountRecord,
    upper: Option<Upper>,
    changes: Changes,
    phase: Phase,
    holds: Vec<Hold>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Mounted,
    /// Gone from sight; its overlay is looked at again at this moment, after this pause.
    Ending {
        again: Instant,
        pause: Duration,
    },
}

/// A mount point that nobody else mounts on while this lives.
pub(crate) struct Claim {
    table: Arc<Mutex<Table>>,
    key: (u64, PathBuf),
    target: Target,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.table.lock().claimed.remove(&self.key);
    }
}

impl Mounts {
    /// The mounts that are recorded in `state`. Those of another life of the keeper serve nothing any
    /// more and are cleared away. `hold` gives what keeps a slot's snapshot served, if it still is.
    pub fn open(
        state: &Path,
        session: &str,
        mut hold: impl FnMut(u32) -> Option<Hold>,
    ) -> Result<Self, MountError> {
        let registry = Registry::open(state)?;
        let mut table = Table::default();
        for record in registry.list()? {
            let held: Option<Vec<Hold>> = if record.session == session {
                record.slots.iter().map(|slot| hold(*slot)).collect()
            } else {
                None
            };
            match held {
                Some(holds) => table.live.push(Live {
                    upper: None,
                    changes: Changes::Stay,
                    phase: Phase::Mounted,
                    holds,
                    record,
                }),
                None => {
                    if let Err(error) = clear(&registry, &record) {
                        tracing::warn!(%error, "a mount that nothing serves could not be cleared away");
                    }
                }
            }
        }
        let mounts = Self {
            state: state.to_owned(),
            session: session.to_owned(),
            registry,
            table: Arc::new(Mutex::new(table)),
        };
        mounts.adopt_uppers();
        mounts.sweep_scratch();
        Ok(mounts)
    }

    /// All that users see, in no order.
    pub fn list(&self) -> Vec<MountRecord> {
        let table = self.table.lock();
        let seen = table.live.iter().filter(|live| live.phase == Phase::Mounted);
        seen.map(|live| live.record.clone()).collect()
    }

    /// Whether nothing is mounted, nor about to be, nor has to be cleared up.
    pub fn is_empty(&self) -> bool {
        let table = self.table.lock();
        table.live.is_empty() && table.claimed.is_empty() && table.finishing.is_empty()
    }

    /// Finds the directory at `path`, as the caller sees it, and keeps others from mounting there.
    pub(crate) fn claim(&self, caller: Caller, path: &Path) -> Result<Claim, MountError> {
        let target = Target::find(caller, path)?;
        let key = (target.namespace(), target.path().to_owned());
        // A mount that is gone without having been noticed would be in the way.
        self.look_at(|live| live.is_at(&key.1, key.0));
        let mut table = self.table.lock();
        if let Some(live) = table.live.iter().find(|live| live.is_at(&key.1, key.0)) {
            return Err(MountError::AlreadyMounted {
                mountpoint: key.1,
                snapshot: live.record.snapshot,
            });
        }
        if !table.claimed.insert(key.clone()) {
            return Err(MountError::BeingMounted(key.1));
        }
        drop(table);
        Ok(Claim { table: Arc::clone(&self.table), key, target })
    }

    /// Mounts.
    pub(crate) fn create(&self, claim: &Claim, wanted: Wanted) -> Result<MountRecord, MountError> {
        let place = match &wanted.view {
            WantedView::ReadOnly => None,
            WantedView::Writable(place) => {
                Some(self.place(place, wanted.snapshot, claim.target.path())?)
            }
        };
        let upper = match &place {
            Some((path, keep)) => {
                Some(Upper::prepare(path, *keep, wanted.snapshot, &wanted.top.dir)?)
            }
            None => None,
        };
        match self.attach(claim, &wanted, upper.as_ref()) {
            Ok(record) => {
                let live = Live {
                    record: record.clone(),
                    upper,
                    changes: Changes::Stay,
                    phase: Phase::Mounted,
                    holds: std::iter::once(wanted.top)
                        .chain(wanted.below)
                        .map(|layer| layer.hold)
                        .collect(),
                };
                self.table.lock().live.push(live);
                Ok(record)
            }
            Err(error) => {
                if let Some(upper) = upper {
                    upper.release()?;
                }
                Err(error)
            }
        }
    }

    /// Unmounts what is mounted at `path` as the caller sees it.
    pub(crate) fn unmount(
        &self,
        caller: Caller,
        path: &Path,
        how: Umount,
        changes: Changes,
    ) -> Result<Unmounted, MountError> {
        let namespace = caller.namespace()?;
        let path = caller.locate(path);
        let found = self.set_changes(changes, |live| {
            live.phase == Phase::Mounted
                && live.record.seen.is_in(&namespace)
                && live.record.mountpoint.to_path() == path
        });
        let Some(record) = found else {
            let registry = self.registry.dir().to_owned();
            return Err(MountError::NotMounted { mountpoint: path, registry });
        };
        if let Err(error) = unmount_patiently(&record.seen, &path, how) {
            self.set_changes(Changes::Stay, |live| live.record.seen == record.seen);
            return Err(error);
        }
        Ok(self.wait_for_end(record, how, changes))
    }

    /// Unmounts everything, whoever uses it. What can't be unmounted is left to its users, who get
    /// errors when nothing serves it.
    pub(crate) fn unmount_all(&self) {
        for record in self.list() {
            if let Err(error) = self.undo(&record) {
                tracing::warn!(%error, "a mount stays, and nothing serves it any more");
            }
        }
    }

    /// Forgets mounts that nothing serves any more, those too whose last users are still there: they
    /// get errors from now on.
    pub(crate) fn forget_all(&self) {
        let live = std::mem::take(&mut self.table.lock().live);
        for live in live {
            self.finish(live);
        }
    }

    /// Looks which mounts are gone and clears up after them. Returns when to look again, even if
    /// nobody reports a change; `None`: not before somebody does.
    pub fn look(&self) -> Option<Duration> {
        self.look_at(|_| true);
        let own = Namespace::own().ok();
        let now = Instant::now();
        let table = self.table.lock();
        let waits = table.live.iter().filter_map(|live| match live.phase {
            Phase::Ending { again, .. } => Some(again.saturating_duration_since(now)),
            Phase::Mounted if own.as_ref().is_some_and(|own| live.record.seen.is_in(own)) => None,
            // Nobody tells of what happens in other namespaces.
            Phase::Mounted => Some(LOOK_ELSEWHERE),
        });
        waits.min()
    }

    /// Looks which of the `wanted` mounts are gone and clears up after them.
    fn look_at(&self, wanted: impl Fn(&Live) -> bool) {
        let now = Instant::now();
        let mut ended = Vec::new();
        {
            let mut table = self.table.lock();
            let mut at = 0;
            while let Some(live) = table.live.get_mut(at) {
                if wanted(live) && live.is_over(now) {
                    let live = table.live.swap_remove(at);
                    table.finishing.insert(live.record.seen.number());
                    ended.push(live);
                } else {
                    at += 1;
                }
            }
        }
        for live in ended {
            let number = live.record.seen.number();
            self.finish(live);
            self.table.lock().finishing.remove(&number);
        }
    }
}

impl Mounts {
    fn place(
        &self,
        wanted: &UpperPlace,
        snapshot: SnapshotId,
        mountpoint: &Path,
    ) -> Result<(PathBuf, Keep), MountError> {
        let uppers = self.state.join("upper");
        Ok(match wanted {
            UpperPlace::Scratch => {
                make_private_dirs(&uppers)?;
                let dir = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&uppers);
                let dir = dir.map_err(MountError::io("make a directory in", &uppers))?;
                (dir.keep(), Keep::Scratch)
            }
            UpperPlace::Beside => {
                let mut name = Digest::of(mountpoint.as_os_str().as_encoded_bytes()).to_hex();
                name.truncate(16);
                (uppers.join(format!("{name}-{}", snapshot.index)), Keep::Kept)
            }
            UpperPlace::Kept(path) => {
                let path = path.to_path();
                let absolute = std::path::absolute(&path).map_err(MountError::io("find", &path))?;
                (absolute, Keep::Kept)
            }
        })
    }

    /// Makes the mount, records it, and only then lets it be seen.
    fn attach(
        &self,
        claim: &Claim,
        wanted: &Wanted,
        upper: Option<&Upper>,
    ) -> Result<MountRecord, MountError> {
        let mountpoint = claim.target.path();
        let tree = match upper {
            None => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let dir = &wanted.top.dir;
                open_tree(CWD, dir, flags).map_err(MountError::io("take a view of", dir))?
            }
            Some(upper) => {
                let layers = Layers {
                    lower: wanted.layers().map(|layer| layer.dir.clone()).collect(),
                    upper: upper.upper(),
                    work: upper.work(),
                };
                overlay::tree(&layers, mountpoint)?
            }
        };
        let record = MountRecord {
            mountpoint: mountpoint.into(),
            snapshot: wanted.snapshot,
            slots: wanted.layers().map(|layer| layer.slot).collect(),
            session: self.session.clone(),
            seen: claim.target.seen(&tree)?,
            view: match upper {
                None => View::ReadOnly,
                Some(upper) => {
                    View::Writable { upper: PathText::from(upper.base()), keep: upper.keep() }
                }
            },
        };
        self.registry.add(&record)?;
        if let Err(error) = claim.target.attach(&tree) {
            self.registry.remove(&record)?;
            return Err(error);
        }
        Ok(record)
    }

    /// Takes a mount out of sight, whoever uses it.
    pub(crate) fn undo(&self, record: &MountRecord) -> Result<(), MountError> {
        record.seen.unmount(&record.mountpoint.to_path(), Umount::Lazily)?;
        self.look_at(|live| live.record.seen == record.seen);
        Ok(())
    }

    /// Says what is to become of the changes of the first mount that is `wanted`.
    fn set_changes(&self, changes: Changes, wanted: impl Fn(&Live) -> bool) -> Option<MountRecord> {
        let mut table = self.table.lock();
        let live = table.live.iter_mut().find(|live| wanted(live))?;
        live.changes = changes;
        Some(live.record.clone())
    }

    /// After a plain unmount nobody uses the overlay any more, unless another namespace has a copy
    /// of it: the kernel needs a moment to end it.
    fn wait_for_end(&self, record: MountRecord, how: Umount, changes: Changes) -> Unmounted {
        let tries = if how == Umount::Lazily { 1 } else { TRIES };
        let mut in_use = true;
        for attempt in 0..tries {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            self.look_at(|live| live.record.seen == record.seen);
            in_use = self.table.lock().has(&record.seen);
            if !in_use {
                break;
            }
        }
        let beside = match &record.view {
            View::Writable { upper, keep: Keep::Kept } => self.is_beside(&upper.to_path()),
            View::Writable { .. } | View::ReadOnly => false,
        };
        Unmounted { in_use, discarded: beside && !in_use && changes == Changes::Discard, record }
    }

    /// Whether changes are kept where this program chose, and not where a user did.
    fn is_beside(&self, upper: &Path) -> bool {
        upper.starts_with(self.state.join("upper"))
    }

    fn finish(&self, live: Live) {
        let Live { record, upper, changes, holds, .. } = live;
        let outcome = match upper {
            None => Ok(()),
            Some(upper) if changes == Changes::Discard && self.is_beside(upper.base()) => {
                upper.discard()
            }
            Some(upper) => upper.release(),
        };
        if let Err(error) = outcome.and_then(|()| self.registry.remove(&record)) {
            tracing::warn!(%error, "a mount has ended and left something behind");
        }
        drop(holds);
    }

    /// Takes hold of the upper directories of mounts that were found again.
    fn adopt_uppers(&self) {
        for live in &mut self.table.lock().live {
            live.adopt_upper();
        }
    }

    /// Removes scratch directories that no mount has, as a crash leaves them.
    fn sweep_scratch(&self) {
        let used: HashSet<PathBuf> =
            self.table.lock().live.iter().filter_map(|live| live.record.upper()).collect();
        let Ok(entries) = fs::read_dir(self.state.join("upper")) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let scratch = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(SCRATCH.as_bytes()));
            if scratch && !used.contains(&path) {
                let swept = Upper::adopt(&path, Keep::Scratch)
                    .and_then(|upper| if upper.is_mounted()? { Ok(()) } else { upper.release() });
                if let Err(error) = swept {
                    tracing::warn!(%error, "changes of a mount that is gone stay behind");
                }
            }
        }
    }
}

/// How names of scratch directories begin.
const SCRATCH: &str = "scratch-";

impl Live {
    fn is_at(&self, path: &Path, namespace: u64) -> bool {
        self.phase == Phase::Mounted
            && self.record.seen.namespace() == namespace
            && self.record.mountpoint.to_path() == path
    }

    /// Another daemon may be about to let it go: then it is tried again at the next look.
    fn adopt_upper(&mut self) {
        if let (None, View::Writable { upper, keep }) = (&self.upper, &self.record.view) {
            match Upper::adopt(&upper.to_path(), *keep) {
                Ok(upper) => self.upper = Some(upper),
                Err(error) => tracing::debug!(%error, "an upper directory is not ours yet"),
            }
        }
    }

    /// Whether nothing of it is left. If that can't be told, it counts as living: to keep on serving
    /// is the lesser evil.
    fn is_over(&mut self, now: Instant) -> bool {
        let pause = match self.phase {
            Phase::Mounted => match self.record.seen.is_mounted() {
                Ok(false) => LOOK_FIRST,
                Ok(true) => return false,
                Err(error) => {
                    tracing::warn!(%error, "can't tell whether a mount is there");
                    return false;
                }
            },
            Phase::Ending { again, .. } if again > now => return false,
            Phase::Ending { pause, .. } => (pause * 2).min(LOOK_LAST),
        };
        self.adopt_upper();
        let used = match (&self.upper, &self.record.view) {
            (_, View::ReadOnly) => Ok(false),
            (Some(upper), View::Writable { .. }) => upper.is_mounted(),
            (None, View::Writable { .. }) => Ok(true),
        };
        match used {
            Ok(false) => return true,
            Ok(true) => {}
            Err(error) => tracing::warn!(%error, "can't tell whether changes are still made"),
        }
        self.phase = Phase::Ending { again: now + pause, pause };
        false
    }
}

/// Takes a mount out of the tree whose snapshot nothing serves any more, and forgets it.
fn clear(registry: &Registry, record: &MountRecord) -> Result<(), MountError> {
    let mountpoint = record.mountpoint.to_path();
    tracing::info!(mountpoint = %mountpoint.display(), "clearing away a mount that nothing serves");
    if record.seen.is_mounted()? {
        record.seen.unmount(&mountpoint, Umount::Lazily)?;
    }
    if let View::Writable { upper, keep: Keep::Scratch } = &record.view {
        remove_all(&upper.to_path())?;
    }
    registry.remove(record)
}

fn unmount_patiently(seen: &Seen, path: &Path, how: Umount) -> Result<(), MountError> {
    for _ in 0..TRIES {
        match seen.unmount(path, how) {
            Err(MountError::Busy(_)) => thread::sleep(PAUSE),
            other => return other,
        }
    }
    seen.unmount(path, how)
}
