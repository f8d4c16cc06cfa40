//! The contents that this process knows, by their ids: bounded, and shared between readers.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::content::{Content, State};
use super::placement::ContentId;
use crate::ids::Digest;

/// See the module.
#[derive(Debug)]
pub(super) struct Contents {
    dir: PathBuf,
    known: Mutex<LruCache<ContentId, Arc<Content>>>,
    held: Mutex<HashMap<Digest, usize>>,
}

impl Contents {
    /// Keeps at most about `capacity` of them open.
    pub(super) fn new(dir: PathBuf, capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self { dir, known: Mutex::new(LruCache::new(capacity)), held: Mutex::default() }
    }

    pub(super) fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// The content, whether there is anything of it or not.
    pub(super) fn get(&self, id: &ContentId) -> Arc<Content> {
        let mut known = self.known.lock();
        if let Some(content) = known.get(id) {
            return Arc::clone(content);
        }
        let content = Arc::new(Content::new(&self.dir, *id));
        let dropped = known.push(*id, Arc::clone(&content));
        drop(known);
        // Closing files takes time, so not under the lock.
        drop(dropped);
        content
    }

    /// All that are known.
    pub(super) fn all(&self) -> Vec<Arc<Content>> {
        self.known.lock().iter().map(|(_, content)| Arc::clone(content)).collect()
    }

    /// Closes the files of `content` unless somebody reads or writes them.
    pub(super) fn close(content: &Content, epoch: u64) {
        let Some(_writing) = content.writing.try_lock() else { return };
        let mut state = content.state.write();
        let idle = match &*state {
            State::Part(part) => Arc::strong_count(part) == 1,
            State::Sealed(sealed) => Arc::strong_count(sealed) == 1,
            State::Absent { .. } | State::Lie => false,
        };
        if idle {
            // The epoch before: the next reader looks again.
            let closed = State::Absent { epoch: epoch.wrapping_sub(1) };
            let files = std::mem::replace(&mut *state, closed);
            drop(state);
            drop(files);
        }
    }

    /// Keeps a content from eviction until as often released.
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
