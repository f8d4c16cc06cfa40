//! The cache files that are open, and which files have proved themselves: both bounded, both in
//! shards, so that readers of different groups do not meet at one lock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use super::entry::{Entry, Identity};
use crate::ids::GroupDigest;

const SHARDS: usize = 16;
/// Files remembered as proved after they were closed, in one shard; about 100 bytes each.
const PROVED_PER_SHARD: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Open files by group, least recently used closed first.
#[derive(Debug)]
pub(super) struct OpenFiles {
    shards: [Shard; SHARDS],
}

#[derive(Debug)]
struct Shard {
    files: Mutex<Files>,
    /// Held while a file is opened and verified, so that many readers of one file do it once.
    opening: Mutex<()>,
}

#[derive(Debug)]
struct Files {
    open: LruCache<GroupDigest, Arc<Entry>>,
    proved: LruCache<GroupDigest, Identity>,
}

/// One shard's lock for opening files.
pub(super) struct Opening<'a> {
    shard: &'a Shard,
    _one_at_a_time: MutexGuard<'a, ()>,
}

impl OpenFiles {
    /// Keeps at most about `capacity` files open.
    pub(super) fn new(capacity: usize) -> Self {
        let each = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shard = |_| Shard {
            files: Mutex::new(Files {
                open: LruCache::new(each),
                proved: LruCache::new(PROVED_PER_SHARD),
            }),
            opening: Mutex::new(()),
        };
        Self { shards: std::array::from_fn(shard) }
    }

    /// The open file of `group`.
    pub(super) fn get(&self, group: &GroupDigest) -> Option<Arc<Entry>> {
        self.shard(group).files.lock().open.get(group).cloned()
    }

    /// Whether the file of `group` is open.
    pub(super) fn holds(&self, group: &GroupDigest) -> bool {
        self.shard(group).files.lock().open.contains(group)
    }

    /// Waits for the right to open files of the shard that `group` is in.
    pub(super) fn opening(&self, group: &GroupDigest) -> Opening<'_> {
        let shard = self.shard(group);
        Opening { shard, _one_at_a_time: shard.opening.lock() }
    }

    /// Takes an open file whose contents are known to be right.
    pub(super) fn put(&self, group: GroupDigest, identity: Identity, entry: Arc<Entry>) {
        self.shard(&group).put(group, identity, entry);
    }

    /// Closes the file of `group` and forgets that it proved itself.
    pub(super) fn forget(&self, group: &GroupDigest) {
        let mut files = self.shard(group).files.lock();
        let entry = files.open.pop(group);
        files.proved.pop(group);
        drop(files);
        drop(entry);
    }

    /// Closes what was not read since this was last called, and gives what was.
    pub(super) fn close_idle(&self) -> Vec<GroupDigest> {
        let (mut used, mut idle) = (Vec::new(), Vec::new());
        for shard in &self.shards {
            let mut files = shard.files.lock();
            let groups: Vec<GroupDigest> = files.open.iter().map(|(group, _)| *group).collect();
            for group in groups {
                if files.open.peek(&group).is_some_and(|entry| entry.take_used()) {
                    used.push(group);
                } else {
                    idle.extend(files.open.pop(&group));
                }
            }
        }
        // Closing files takes time, so not under the locks.
        drop(idle);
        used
    }

    /// What was read since this was last called.
    pub(super) fn take_used(&self) -> Vec<GroupDigest> {
        let mut used = Vec::new();
        for shard in &self.shards {
            let files = shard.files.lock();
            used.extend(files.open.iter().filter(|(_, e)| e.take_used()).map(|(group, _)| *group));
        }
        used
    }

    fn shard(&self, group: &GroupDigest) -> &Shard {
        let [first, ..] = group.0.as_bytes();
        let [only, rest @ ..] = &self.shards;
        match (usize::from(*first) % SHARDS).checked_sub(1) {
            None => only,
            Some(place) => rest.get(place).unwrap_or(only),
        }
    }
}

impl Shard {
    fn put(&self, group: GroupDigest, identity: Identity, entry: Arc<Entry>) {
        let mut files = self.files.lock();
        let evicted = files.open.push(group, entry);
        files.proved.put(group, identity);
        drop(files);
        // Closing a file takes time, so not under the lock.
        drop(evicted);
    }
}

impl Opening<'_> {
    /// The open file of `group`, if another reader opened it meanwhile.
    pub(super) fn get(&self, group: &GroupDigest) -> Option<Arc<Entry>> {
        self.shard.files.lock().open.get(group).cloned()
    }

    /// Whether the file `identity` has proved to be `group`.
    pub(super) fn is_proved(&self, group: &GroupDigest, identity: Identity) -> bool {
        self.shard.files.lock().proved.get(group) == Some(&identity)
    }

    /// Takes the file that was opened.
    pub(super) fn put(&self, group: GroupDigest, identity: Identity, entry: Arc<Entry>) {
        self.shard.put(group, identity, entry);
    }
}
