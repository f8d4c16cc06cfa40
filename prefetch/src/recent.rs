//! Keeps decoded groups that the cache rejected in memory for a while. Without this, a program that
//! reads a file in small pieces would fetch the group once per piece.

use bytes::Bytes;
use lru::LruCache;

use crate::want::Key;

/// LRU of decoded groups by key, bounded in bytes.
#[derive(Debug)]
pub(crate) struct Recent {
    groups: LruCache<Key, Bytes>,
    bytes: u64,
    bytes_max: u64,
}

impl Recent {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { groups: LruCache::unbounded(), bytes: 0, bytes_max }
    }

    pub(crate) fn get(&mut self, key: &Key) -> Option<Bytes> {
        self.groups.get(key).cloned()
    }

    pub(crate) fn put(&mut self, key: Key, group: Bytes) {
        self.bytes += group.len() as u64;
        if let Some(before) = self.groups.put(key, group) {
            self.bytes -= before.len() as u64;
        }
        while self.bytes > self.bytes_max {
            let Some((_, dropped)) = self.groups.pop_lru() else { break };
            self.bytes -= dropped.len() as u64;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.groups.clear();
        self.bytes = 0;
    }
}
