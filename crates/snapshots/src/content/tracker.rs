//! Tracks the groups that readers touch in one attached snapshot: records them for the next start,
//! and notifies the prefetch scheduler.
//!
//! The first touch of a unit takes a lock; any other read tests its bit. The run ends when no new
//! group was touched for a while, after which only the bits are maintained.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use inlay_prefetch::scheduler::{Touched, WorkProgress};
use inlay_prefetch::{GroupList, GroupRef, Loading};
use inlay_store::format::{Extent, FileData, Group, GroupIdx, Index, InodeIdx};
use inlay_store::profile::{Entry, Profile, Run, Touch, UnitSet};
use parking_lot::Mutex;

use super::locate::{groups_of_file, whole_group};

/// A start is over when no new group was touched for this long,
const QUIET: Duration = Duration::from_secs(10);
/// or this long after the first touch.
const RUN_MAX: Duration = Duration::from_mins(3);
/// Maximum files tracked that the kernel reads directly.
const OPENED_MAX: usize = 4096;
/// Number of groups of such a file that count as touched without better information. Of shared
/// libraries and programs most groups are touched: 15 of 15 of python's, and nearly all of its
/// modules'.
const OPENED_GROUPS: usize = 16;

/// Tracks the use of one attached snapshot.
pub struct Tracker {
    began: Instant,
    /// The touched units of each group.
    touched: Box<[AtomicU16]>,
    recording: AtomicBool,
    run: Mutex<Recorded>,
    loading: Mutex<Option<Arc<Loading>>>,
}

#[derive(Default)]
struct Recorded {
    run: Run,
    /// Large files that the cache had completely when they were opened.
    opened: BTreeMap<InodeIdx, Duration>,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Statistics of a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct TrackerStats {
    /// Number of groups touched.
    pub touched: u64,
    /// State of prefetch.
    #[serde(flatten)]
    pub loading: Option<WorkProgress>,
}

impl Tracker {
    /// Begins a run of a snapshot with `groups` groups.
    pub fn new(groups: u32) -> Self {
        Self {
            began: Instant::now(),
            touched: (0..groups).map(|_| AtomicU16::new(0)).collect(),
            recording: AtomicBool::new(true),
            run: Mutex::default(),
            loading: Mutex::default(),
        }
    }

    /// Attaches the prefetch to notify of touches. Ends the previous one.
    pub fn set_loading(&self, loading: Loading) {
        let before = self.loading.lock().replace(Arc::new(loading));
        // Dropping it notifies others, so do not hold the lock.
        drop(before);
    }

    /// Ends prefetch. Returns its statistics if there was one.
    pub fn end_loading(&self) -> Option<WorkProgress> {
        let before = self.loading.lock().take();
        before.map(|loading| loading.stats())
    }

    /// Returns the attached prefetch, if any.
    pub fn loading(&self) -> Option<Arc<Loading>> {
        self.loading.lock().clone()
    }

    /// Whether the run is still being recorded.
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }

    /// Records that a reader touched `units` of a group of `index` with the number `group`.
    pub(super) fn touch(&self, index: &Index, group: GroupIdx, what: &Group, units: UnitSet) {
        let Some(known) = self.touched.get(group.0 as usize) else { return };
        if UnitSet::from_bits(known.load(Ordering::Relaxed)).contains(units) {
            return;
        }
        let before = UnitSet::from_bits(known.fetch_or(units.bits(), Ordering::Relaxed));
        if before.contains(units) {
            return;
        }
        if before.is_empty()
            && let Some(loading) = self.loading()
        {
            let file = what.owner.and_then(|owner| groups_of_file(index, owner));
            loading.touched(&Touched {
                group: group.0,
                stored_len: what.stored_len,
                file: file.unwrap_or_default(),
            });
        }
        if self.is_recording() {
            let now = Instant::now();
            let mut recorded = self.run.lock();
            recorded.first.get_or_insert(now);
            if before.is_empty() {
                recorded.last = Some(now);
            }
            recorded.run.record(Touch { group, units, at: now - self.began });
        }
    }

    fn is_touched(&self, group: GroupIdx, units: UnitSet) -> bool {
        let known = self.touched.get(group.0 as usize);
        known.is_some_and(|known| UnitSet::from_bits(known.load(Ordering::Relaxed)).contains(units))
    }

    /// Records a read from a file that the cache has completely.
    pub(super) fn touch_file(&self, index: &Index, inode: InodeIdx, range: Range<u64>) {
        let Ok(FileData::Extents(extents)) = index.data(inode) else { return };
        for extent in extents.within(range.clone()).flatten() {
            let units = units_of(&extent, &range);
            // Most reads need no lookup of the group.
            if !self.is_touched(extent.group, units)
                && let Ok(group) = index.group(extent.group)
            {
                self.touch(index, extent.group, &group, units);
            }
        }
    }

    /// Records that a large file was opened that the kernel may read directly.
    pub(super) fn opened(&self, inode: InodeIdx) {
        if !self.is_recording() {
            return;
        }
        let now = Instant::now();
        let mut recorded = self.run.lock();
        if recorded.opened.len() < OPENED_MAX && !recorded.opened.contains_key(&inode) {
            recorded.opened.insert(inode, now - self.began);
            recorded.first.get_or_insert(now);
            recorded.last = Some(now);
        }
    }

    /// Whether the start is over: something was touched, and then nothing new for a while.
    pub fn is_over(&self) -> bool {
        let recorded = self.run.lock();
        recorded.last.is_some_and(|last| last.elapsed() >= QUIET)
            || recorded.first.is_some_and(|first| first.elapsed() >= RUN_MAX)
    }

    /// Ends the run and returns the touches; `None` if there were none, or if it had ended before.
    ///
    /// The kernel's direct reads of whole files are not observed: of these files, the groups that
    /// earlier runs in `known` touched count as touched, or else the first groups.
    pub fn finish(&self, index: &Index, known: Option<&Profile>) -> Option<Run> {
        if !self.recording.swap(false, Ordering::Relaxed) {
            return None;
        }
        let Recorded { run, opened, .. } = std::mem::take(&mut *self.run.lock());
        let mut touches = run.touches().to_vec();
        for (inode, at) in opened {
            let Ok(FileData::Extents(extents)) = index.data(inode) else { continue };
            let own: BTreeSet<GroupIdx> = extents.iter().flatten().map(|e| e.group).collect();
            let touch = |entry: &Entry| Touch { group: entry.group, units: entry.units, at };
            let earlier = known.into_iter().flat_map(Profile::entries);
            let earlier = earlier.filter(|entry| own.contains(&entry.group)).map(touch);
            let mut of_file: Vec<Touch> = earlier.collect();
            if of_file.is_empty() {
                let guessed = own.iter().copied().take(OPENED_GROUPS);
                of_file.extend(guessed.map(|group| Touch { group, units: UnitSet::ALL, at }));
            }
            touches.extend(of_file);
        }
        touches.sort_by_key(|touch| touch.at);
        let run: Run = touches.into_iter().collect();
        (!run.is_empty()).then_some(run)
    }

    /// Returns statistics so far.
    pub fn stats(&self) -> TrackerStats {
        let touched = self.touched.iter().filter(|units| units.load(Ordering::Relaxed) != 0);
        TrackerStats {
            touched: touched.count() as u64,
            loading: self.loading().map(|loading| loading.stats()),
        }
    }
}

/// Returns the units of its group that hold the part of `extent` within `range`, which overlaps it.
fn units_of(extent: &Extent, range: &Range<u64>) -> UnitSet {
    let within = |offset: u64| {
        let skip = offset.clamp(extent.file_offset, extent.file_end()) - extent.file_offset;
        // Fits: it is at most the length of the extent.
        extent.group_offset.saturating_add(u32::try_from(skip).unwrap_or(extent.len))
    };
    UnitSet::of(within(range.start)..within(range.end))
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Groups of an index, by number.
pub struct Groups(Index);

impl Groups {
    /// Wraps the groups of `index`.
    pub fn of(index: &Index) -> Arc<Self> {
        Arc::new(Self(index.clone()))
    }
}

impl GroupList for Groups {
    fn group(&self, number: u32) -> Option<GroupRef> {
        whole_group(&self.0, GroupIdx(number)).ok()
    }
}
