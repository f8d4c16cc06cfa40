//! The mounts of one daemon: made, found again after a restart, ended, and cleared up after.
//!
//! A mount ends in two steps. First it is gone from where users saw it, by whomever. Then, for a
//! writable one, its overlay's last user is gone: only then are its changes given up. Everything here
//! may wait for the disk, so none of it is called on a thread of the runtime.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use inlay_store::ids::SnapshotId;
use parking_lot::Mutex;

use super::error::MountError;
use super::ids::Spaces;
use super::namespace::Namespace;
use super::owned::Removed;
use super::path::{MakePath, Owner};
use super::record::{MountRecord, PathText, Standing, View};
use super::registry::{Registry, remove_all};
use super::target::{Caller, Seen, Target, Umount};
use super::upper::{Changes, Keep, Upper, WantedView};
use crate::inject::{self, Step};

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
    /// The sandbox that the mount belongs to, if it is one's.
    pub owner: Option<String>,
    /// Whose the snapshot's root directory, and all that has the same owner, is to be, in numbers of
    /// the target's user namespace. `None`: as in the snapshot.
    pub chown: Option<Owner>,
    /// The key of the request for it, if it had one.
    pub key: Option<String>,
    /// What becomes of it if the daemon dies before [`Mounts::confirm`].
    pub standing: Standing,
}

impl Wanted {
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
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
    pub(super) state: PathBuf,
    pub(super) session: String,
    pub(super) registry: Registry,
    pub(super) table: Arc<Mutex<Table>>,
    pub(super) spaces: Spaces,
    /// Held while directories that were made for a mount are removed.
    pub(super) removing: Mutex<()>,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) live: Vec<Live>,
    /// Mount points, in their namespaces, that something is about to be mounted on.
    claimed: HashSet<(u64, PathBuf)>,
    /// Mounts, by their numbers, that are over and are being cleared up after; and where they were.
    finishing: HashMap<u64, (u64, PathBuf)>,
    /// Mounts, by their numbers, that are about to be undone.
    doomed: HashSet<u64>,
}

impl Table {
    /// Whether something of a mount is still there.
    fn has(&self, seen: &Seen) -> bool {
        self.finishing.contains_key(&seen.number())
            || self.live.iter().any(|live| live.record.seen == *seen)
    }
}

pub(super) struct Live {
    pub(super) record: MountRecord,
    upper: Option<Upper>,
    changes: Changes,
    pub(super) phase: Phase,
    holds: Vec<Hold>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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
    pub(super) target: Target,
}

impl Claim {
    /// Where it is: absolute, without symbolic links, as its namespace has it.
    pub(crate) fn path(&self) -> &Path {
        &self.key.1
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Before others may look for the directories: they would mount on what goes.
        self.target.remove_made_now();
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
            spaces: Spaces::default(),
            removing: Mutex::default(),
        };
        mounts.adopt_uppers();
        mounts.undo_unconfirmed();
        mounts.registry.sweep_announced();
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

    /// Finds the directory at `path`, as the caller sees it, or makes it, and keeps others from
    /// mounting there. What was made goes again if the claim is dropped.
    pub(crate) fn claim(
        &self,
        caller: Caller,
        path: &Path,
        make: MakePath,
    ) -> Result<Claim, MountError> {
        let target = Target::find(caller, path, make, &self.registry)?;
        let key = (target.namespace(), target.path().to_owned());
        // A mount that is gone without having been noticed would be in the way.
        self.look_at(|live| live.is_at(&key.1, key.0));
        let mut table = self.table.lock();
        if let Some(live) = table.live.iter().find(|live| live.is_at(&key.1, key.0)) {
            // Nobody knows yet whether it stays.
            let is_open = live.record.standing == Standing::Unconfirmed;
            if is_open || table.doomed.contains(&live.record.seen.number()) {
                return Err(MountError::BeingMounted(key.1));
            }
            return Err(MountError::AlreadyMounted {
                mountpoint: key.1,
                snapshot: live.record.snapshot,
            });
        }
        let is_finishing = table.finishing.values().any(|at| *at == key);
        if is_finishing || !table.claimed.insert(key.clone()) {
            return Err(MountError::BeingMounted(key.1));
        }
        drop(table);
        let claim = Claim { table: Arc::clone(&self.table), key, target };
        // It may have been made for a mount that has just ended, and go with it.
        if self.remove_made_at(&claim.key) == Removed::Some || !claim.target.is_there() {
            return Err(MountError::BeingMounted(claim.key.1.clone()));
        }
        let path = claim.target.path();
        inject::point(Step::MountClaimed).map_err(MountError::io("mount on", path))?;
        Ok(claim)
    }

    /// Mounts.
    pub(crate) fn create(
        &self,
        mut claim: Claim,
        wanted: Wanted,
    ) -> Result<MountRecord, MountError> {
        let shown = self.shown(&claim, &wanted)?;
        let place = match &wanted.view {
            WantedView::ReadOnly => None,
            WantedView::Writable(place) => {
                Some(self.place(place, wanted.snapshot, claim.target.path())?)
            }
        };
        let upper = match (&place, shown.dirs.first()) {
            (Some((path, keep)), Some(top)) => {
                Some(Upper::prepare(path, *keep, wanted.snapshot, top)?)
            }
            _ => None,
        };
        match self.attach(&claim, &wanted, shown, upper.as_ref()) {
            Ok(record) => {
                claim.target.keep_made();
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

    /// Whoever wanted the mount `record` is about to know of it: from now on it outlives this daemon.
    pub(crate) fn confirm(&self, record: &MountRecord) -> Result<MountRecord, MountError> {
        let mut table = self.table.lock();
        let Some(live) = table.live.iter_mut().find(|live| live.record.seen == record.seen) else {
            let (mountpoint, registry) =
                (record.mountpoint.to_path(), self.registry.dir().to_owned());
            return Err(MountError::NotMounted { mountpoint, registry });
        };
        live.record.standing = Standing::Confirmed;
        self.registry.add(&live.record)?;
        let mountpoint = live.record.mountpoint.to_path();
        inject::point(Step::MountConfirmed).map_err(MountError::io("mount on", &mountpoint))?;
        Ok(live.record.clone())
    }

    /// Says that the mount `record` is about to be undone. Its place counts as one where something is
    /// being mounted, and not as that mount's. Does not block.
    pub(crate) fn doom(&self, record: &MountRecord) {
        self.table.lock().doomed.insert(record.seen.number());
    }

    /// Undoes what an earlier daemon has mounted for somebody who was never told.
    fn undo_unconfirmed(&self) {
        for record in self.list() {
            if record.standing == Standing::Unconfirmed
                && let Err(error) = self.undo(&record)
            {
                tracing::warn!(%error, "a mount that nobody was told of stays");
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
        match self.find(caller, path)? {
            Some(record) => self.unmount_recorded(&record, how, changes),
            None => Err(MountError::NotMounted {
                mountpoint: caller.locate(path),
                registry: self.registry.dir().to_owned(),
            }),
        }
    }

    /// Unmounts a mount of this table. Those that are on it are in the way, or end with it if it is
    /// ended lazily.
    pub(crate) fn unmount_recorded(
        &self,
        record: &MountRecord,
        how: Umount,
        changes: Changes,
    ) -> Result<Unmounted, MountError> {
        let mountpoint = record.mountpoint.to_path();
        let on_it = self.mounts_on(record);
        if how == Umount::IfFree && !on_it.is_empty() {
            let on_it = on_it.iter().map(|record| record.mountpoint.to_path()).collect();
            return Err(MountError::HasMounts { mountpoint, on_it });
        }
        for nested in on_it {
            self.undo(&nested)?;
        }
        let same = |live: &Live| live.record.seen == record.seen;
        let Some(record) =
            self.set_changes(changes, |live| live.phase == Phase::Mounted && same(live))
        else {
            let registry = self.registry.dir().to_owned();
            return Err(MountError::NotMounted { mountpoint, registry });
        };
        let unmounted = inject::point(Step::UmountBegun)
            .map_err(MountError::io("unmount", &mountpoint))
            .and_then(|()| unmount_patiently(&record.seen, &mountpoint, how));
        if let Err(error) = unmounted {
            self.set_changes(Changes::Stay, same);
            return Err(error);
        }
        inject::point(Step::UmountDone).map_err(MountError::io("clear up after", &mountpoint))?;
        self.remove_made(&record);
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
                    let record = &live.record;
                    let at = (record.seen.namespace(), record.mountpoint.to_path());
                    table.finishing.insert(record.seen.number(), at);
                    ended.push(live);
                } else {
                    at += 1;
                }
            }
        }
        for live in ended {
            let number = live.record.seen.number();
            self.finish(live);
            let mut table = self.table.lock();
            table.finishing.remove(&number);
            table.doomed.remove(&number);
        }
    }
}

impl Mounts {
    /// Takes a mount out of sight, whoever uses it.
    pub(crate) fn undo(&self, record: &MountRecord) -> Result<(), MountError> {
        record.seen.unmount(&record.mountpoint.to_path(), Umount::Lazily)?;
        self.remove_made(record);
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
        self.remove_last_made(&live.record);
        let Live { record, upper, changes, holds, .. } = live;
        let outcome = match upper {
            None => Ok(()),
            Some(upper) if changes == Changes::Discard && self.is_beside(upper.base()) => {
                upper.discard()
            }
            Some(upper) => upper.release(),
        };
        let injected = |step| {
            inject::point(step).map_err(MountError::io("clear up after", self.registry.dir()))
        };
        let released = outcome.and_then(|()| injected(Step::UpperReleased));
        // Whatever became of its changes: nothing can be served by it any more.
        let removed = self.registry.remove(&record).and_then(|()| injected(Step::RecordRemoved));
        for error in [released, removed].into_iter().filter_map(Result::err) {
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
pub(super) const SCRATCH: &str = "scratch-";

impl Live {
    pub(super) fn is_at(&self, path: &Path, namespace: u64) -> bool {
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
            // A daemon that died while it cleared up may have removed the directory already.
            (None, View::Writable { upper, .. }) => Ok(upper.to_path().exists()),
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
    let made: Vec<PathBuf> = record.made.iter().map(PathText::to_path).collect();
    if !made.is_empty() {
        record.seen.remove_made(&made)?;
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
