//! Tracks open group files, and which files are verified. Both sets are bounded and sharded, so
//! that readers of different groups do not contend for one lock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use super::entry::{CacheFile, Identity};
use crate::ids::GroupDigest;

const SHARDS: usize = 16;
/// Verified files remembered per shard after they are closed; about 100 bytes each.
const PROVED_PER_SHARD: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// An LRU cache of open files by group.
#[derive(Debug)]
pub(super) struct OpenFiles {
    shards: [Shard; SHARDS],
}

#[derive(Debug)]
struct Shard {
    files: Mutex<Files>,
    /// Held while a file is opened and verified, so that concurrent readers of a file do it once.
    opening: Mutex<()>,
}

#[derive(Debug)]
struct Files {
    open: LruCache<GroupDigest, Arc<CacheFile>>,
    proved: LruCache<GroupDigest, Identity>,
}

/// Guard of the `opening` lock of one shard.
pub(super) struct Opening<'a> {
    shard: &'a Shard,
    _one_at_a_time: MutexGuard<'a, ()>,
}

impl OpenFiles {
    /// Creates an empty set that keeps at most about `capacity` files open.
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

    /// Returns the open file of `group`.
    pub(super) fn get(&self, group: &GroupDigest) -> Option<Arc<CacheFile>> {
        self.shard(group).files.lock().open.get(group).cloned()
    }

    /// Returns whether the file of `group` is open.
    pub(super) fn holds(&self, group: &GroupDigest) -> bool {
        self.shard(group).files.lock().open.contains(group)
    }

    /// Locks the shard of `group` for opening files. Blocks while another thread holds the lock.
    pub(super) fn opening(&self, group: &GroupDigest) -> Opening<'_> {
        let shard = self.shard(group);
        Opening { shard, _one_at_a_time: shard.opening.lock() }
    }

    /// Adds an open, verified file.
    pub(super) fn put(&self, group: GroupDigest, identity: Identity, entry: Arc<CacheFile>) {
        self.shard(&group).put(group, identity, entry);
    }

    /// Closes the file of `group` and forgets its verification.
    pub(super) fn forget(&self, group: &GroupDigest) {
        let mut files = self.shard(group).files.lock();
        let entry = files.open.pop(group);
        files.proved.pop(group);
        drop(files);
        drop(entry);
    }

    /// Closes the files not read since the last call, and returns the groups of the others.
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
        // Closing files takes time: do it without the locks.
        drop(idle);
        used
    }

    /// Returns the groups read since the last call.
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
    fn put(&self, group: GroupDigest, identity: Identity, entry: Arc<CacheFile>) {
        let mut files = self.files.lock();
        let evicted = files.open.push(group, entry);
        files.proved.put(group, identity);
        drop(files);
        // Closing a file takes time: do it without the lock.
        drop(evicted);
    }
}

impl Opening<'_> {
    /// Returns the open file of `group`, if another reader has opened it meanwhile.
    pub(super) fn get(&self, group: &GroupDigest) -> Option<Arc<CacheFile>> {
        self.shard.files.lock().open.get(group).cloned()
    }

    /// Returns whether the file `identity` is verified to hold `group`.
    pub(super) fn is_proved(&self, group: &GroupDigest, identity: Identity) -> bool {
        self.shard.files.lock().proved.get(group) == Some(&identity)
    }

    /// Adds the file that was opened and verified.
    pub(super) fn put(&self, group: GroupDigest, identity: Identity, entry: Arc<CacheFile>) {
        self.shard.put(group, identity, entry);
    }
}
