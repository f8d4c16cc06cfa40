//! One snapshot as it is read, and who records that.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use inlay_store::format::{GroupIdx, Index, InodeIdx};
use inlay_store::ids::SnapshotId;
use parking_lot::RwLock;

use super::buffer::Touch;
use super::recorder::Recording;
use super::watch::WatchId;
use crate::trace::clock;
use crate::trace::model::Tier;

/// What a source is.
#[derive(Debug, Clone)]
pub struct About {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its store, for people.
    pub store: String,
    /// What fetches from that.
    pub watch: WatchId,
    /// Its index.
    pub index: Index,
}

/// A snapshot whose reads may be recorded.
#[derive(Debug)]
pub struct Source {
    pub(super) about: About,
    pub(super) name: OnceLock<String>,
    on: AtomicBool,
    taps: RwLock<Vec<Tap>>,
}

/// A recording of this source.
#[derive(Debug)]
struct Tap {
    recording: Arc<Recording>,
    /// The source's place in the recording.
    source: u32,
    /// Which files it has seen: a bit for each inode.
    seen: Box<[AtomicU64]>,
}

impl Tap {
    fn has_seen(&self, inode: InodeIdx) -> bool {
        let word = self.seen.get(inode.0 as usize / 64);
        word.is_none_or(|word| word.load(Ordering::Relaxed) & 1 << (inode.0 % 64) != 0)
    }

    /// Whether it sees it for the first time.
    fn sees(&self, inode: InodeIdx) -> bool {
        let bit = 1u64 << (inode.0 % 64);
        let word = self.seen.get(inode.0 as usize / 64);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }
}

/// A read that waits, in all that record it.
#[derive(Debug, Default)]
pub struct Pending(Vec<(Arc<Recording>, u32)>);

impl Pending {
    /// It was answered.
    pub fn end(self) {
        if !self.0.is_empty() {
            let now = clock::now();
            for (recording, place) in self.0 {
                recording.buffer.lock().answered(place, now);
            }
        }
    }
}

/// A read as the kernel wants it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub(crate) inode: InodeIdx,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
}

impl Source {
    pub(super) fn new(about: About) -> Self {
        Self { about, name: OnceLock::new(), on: AtomicBool::new(false), taps: RwLock::default() }
    }

    /// Says what the snapshot is called.
    pub fn call(&self, name: &str) {
        // The first name stays.
        drop(self.name.set(name.to_owned()));
    }

    /// Whether anybody records it.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// A read begins. The moment, if it would be a first touch to anybody.
    pub(crate) fn begins(&self, inode: InodeIdx) -> Option<u64> {
        let is_new = self.is_on() && self.taps.read().iter().any(|tap| !tap.has_seen(inode));
        is_new.then(clock::now)
    }

    /// A read that began `at` was answered from this host.
    pub(crate) fn answered(&self, read: Read, tier: Tier, at: u64) {
        let end = clock::now();
        for tap in self.taps.read().iter() {
            if tap.sees(read.inode) {
                let touch = tap.touch(read, tier, at, end, true);
                tap.recording.buffer.lock().touch(touch, &[]);
            }
        }
    }

    /// A read that began `at` waits for these groups.
    pub(crate) fn waits(&self, read: Read, at: u64, groups: &[GroupIdx]) -> Pending {
        let taps = self.taps.read();
        let pending = taps.iter().filter_map(|tap| {
            let first = tap.sees(read.inode);
            let touch = tap.touch(read, Tier::Store, at, 0, first).waiting();
            let place = tap.recording.buffer.lock().touch(touch, groups)?;
            Some((Arc::clone(&tap.recording), place))
        });
        Pending(pending.collect())
    }

    /// A file was opened that the kernel reads by itself.
    pub(crate) fn passed(&self, inode: InodeIdx) {
        if let Some(at) = self.begins(inode) {
            self.answered(Read { inode, offset: 0, bytes: 0 }, Tier::Kernel, at);
        }
    }

    /// From now on `recording` sees it, as its source with this place.
    pub(super) fn tap(&self, recording: &Arc<Recording>, source: u32) {
        let words = self.about.index.inode_count().div_ceil(64);
        let seen = (0..words).map(|_| AtomicU64::new(0)).collect();
        let mut taps = self.taps.write();
        taps.push(Tap { recording: Arc::clone(recording), source, seen });
        self.on.store(true, Ordering::Relaxed);
    }

    /// `recording` sees it no longer.
    pub(super) fn untap(&self, recording: &Arc<Recording>) {
        let mut taps = self.taps.write();
        taps.retain(|tap| !Arc::ptr_eq(&tap.recording, recording));
        self.on.store(!taps.is_empty(), Ordering::Relaxed);
    }
}

impl Tap {
    fn touch(&self, read: Read, tier: Tier, at: u64, end: u64, first: bool) -> Touch {
        let Read { inode, offset, bytes } = read;
        Touch { at, end, offset, source: self.source, inode: inode.0, bytes, tier, first }
    }
}
