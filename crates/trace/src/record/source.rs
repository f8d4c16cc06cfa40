//! Defines a source: one snapshot that is read, with the recordings that observe it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use inlay_store::format::{GroupIdx, Index, InodeIdx};
use inlay_store::ids::SnapshotId;
use parking_lot::RwLock;

use super::buffer::Touch;
use super::recorder::Recording;
use super::watch::WatchId;
use crate::clock;
use crate::model::Tier;

/// Description of a source.
#[derive(Debug, Clone)]
pub struct About {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its store, for display.
    pub store: String,
    /// Watch of the requests to the store.
    pub watch: WatchId,
    /// Its index.
    pub index: Index,
}

/// A snapshot with reads that may be recorded.
#[derive(Debug)]
pub struct Source {
    pub(super) about: About,
    pub(super) name: OnceLock<String>,
    on: AtomicBool,
    taps: RwLock<Vec<Tap>>,
}

/// Connection of a recording to this source.
#[derive(Debug)]
struct Tap {
    recording: Arc<Recording>,
    /// Position of the source in the recording.
    source: u32,
    /// Files seen so far, one bit per inode.
    seen: Box<[AtomicU64]>,
}

impl Tap {
    fn has_seen(&self, inode: InodeIdx) -> bool {
        let word = self.seen.get(inode.0 as usize / 64);
        word.is_none_or(|word| word.load(Ordering::Relaxed) & 1 << (inode.0 % 64) != 0)
    }

    /// Marks a file as seen. Returns whether it was the first time.
    fn sees(&self, inode: InodeIdx) -> bool {
        let bit = 1u64 << (inode.0 % 64);
        let word = self.seen.get(inode.0 as usize / 64);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }
}

/// A waiting read, in every recording that observes it.
#[derive(Debug, Default)]
pub struct Pending(Vec<(Arc<Recording>, u32)>);

impl Pending {
    /// Records the response.
    pub fn end(self) {
        if !self.0.is_empty() {
            let now = clock::now();
            for (recording, place) in self.0 {
                recording.buffer.lock().answered(place, now);
            }
        }
    }
}

/// A read requested by the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// The file.
    pub inode: InodeIdx,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Number of bytes requested.
    pub bytes: u32,
}

impl Source {
    pub(super) fn new(about: About) -> Self {
        Self { about, name: OnceLock::new(), on: AtomicBool::new(false), taps: RwLock::default() }
    }

    /// Sets the name of the snapshot.
    pub fn call(&self, name: &str) {
        // The first name wins.
        drop(self.name.set(name.to_owned()));
    }

    /// Whether a recording observes this source.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Begins a read. Returns the current time if it would be a first touch in any recording.
    pub fn begins(&self, inode: InodeIdx) -> Option<u64> {
        let is_new = self.is_on() && self.taps.read().iter().any(|tap| !tap.has_seen(inode));
        is_new.then(clock::now)
    }

    /// Records a read that began at `at` and was served by this host.
    pub fn answered(&self, read: Read, tier: Tier, at: u64) {
        let end = clock::now();
        for tap in self.taps.read().iter() {
            if tap.sees(read.inode) {
                let touch = tap.touch(read, tier, at, end, true);
                tap.recording.buffer.lock().touch(touch, &[]);
            }
        }
    }

    /// Records a read that began at `at` and waits for these groups.
    pub fn waits(&self, read: Read, at: u64, groups: &[GroupIdx]) -> Pending {
        let taps = self.taps.read();
        let pending = taps.iter().filter_map(|tap| {
            let first = tap.sees(read.inode);
            let touch = tap.touch(read, Tier::Store, at, 0, first).waiting();
            let place = tap.recording.buffer.lock().touch(touch, groups)?;
            Some((Arc::clone(&tap.recording), place))
        });
        Pending(pending.collect())
    }

    /// Records that a file was opened which the kernel reads directly.
    pub fn passed(&self, inode: InodeIdx) {
        if let Some(at) = self.begins(inode) {
            self.answered(Read { inode, offset: 0, bytes: 0 }, Tier::Kernel, at);
        }
    }

    /// Attaches `recording`, in which this source has the given position.
    pub(super) fn tap(&self, recording: &Arc<Recording>, source: u32) {
        let words = self.about.index.inode_count().div_ceil(64);
        let seen = (0..words).map(|_| AtomicU64::new(0)).collect();
        let mut taps = self.taps.write();
        taps.push(Tap { recording: Arc::clone(recording), source, seen });
        self.on.store(true, Ordering::Relaxed);
    }

    /// Detaches `recording`.
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
