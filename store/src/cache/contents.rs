//! Keeps a bounded set of contents by id, shared between readers.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::content::{CachedContent, ContentState};
use super::placement::ContentId;
use crate::ids::Digest;

/// The known contents, with an LRU bound.
#[derive(Debug)]
pub(super) struct Contents {
    dir: PathBuf,
    known: Mutex<LruCache<ContentId, Arc<CachedContent>>>,
    /// Hold counts, see [`Self::hold`].
    held: Mutex<HashMap<Digest, usize>>,
}

impl Contents {
    /// Creates an empty set that keeps at most about `capacity` contents open.
    pub(super) fn new(dir: PathBuf, capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self { dir, known: Mutex::new(LruCache::new(capacity)), held: Mutex::default() }
    }

    pub(super) fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Returns the content `id`, creating it if necessary, even if no bytes of it are cached.
    pub(super) fn get(&self, id: &ContentId) -> Arc<CachedContent> {
        let mut known = self.known.lock();
        if let Some(content) = known.get(id) {
            return Arc::clone(content);
        }
        let content = Arc::new(CachedContent::new(&self.dir, *id));
        let dropped = known.push(*id, Arc::clone(&content));
        drop(known);
        // Closing files takes time: do it without the lock.
        drop(dropped);
        content
    }

    /// Returns all known contents.
    pub(super) fn all(&self) -> Vec<Arc<CachedContent>> {
        self.known.lock().iter().map(|(_, content)| Arc::clone(content)).collect()
    }

    /// Closes the files of `content`, unless a reader or writer is using them.
    pub(super) fn close(content: &CachedContent, epoch: u64) {
        let Some(_writing) = content.writing.try_lock() else { return };
        let mut state = content.state.write();
        let idle = match &*state {
            ContentState::Part(part) => Arc::strong_count(part) == 1,
            ContentState::Sealed(sealed) => Arc::strong_count(sealed) == 1,
            ContentState::Absent { .. } | ContentState::Lie => false,
        };
        if idle {
            // The previous epoch makes the next reader probe the disk again.
            let closed = ContentState::Absent { epoch: epoch.wrapping_sub(1) };
            let files = std::mem::replace(&mut *state, closed);
            drop(state);
            drop(files);
        }
    }

    /// Exempts a content from eviction. Counted: each call needs a matching [`Self::release`].
    pub(super) fn hold(&self, digest: Digest) {
        *self.held.lock().entry(digest).or_default() += 1;
    }

    pub(super) fn release(&self, digest: &Digest) {
        let mut held = self.held.lock();
        if let Some(count) = held.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(digest);
            }
        }
    }

    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        self.held.lock().contains_key(digest)
    }
}
