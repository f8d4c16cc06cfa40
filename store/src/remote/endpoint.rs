//! Holds the store's client, and replaces it when its credentials have expired.

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use parking_lot::Mutex;

/// Creates a client with the current credentials; `None` on failure.
pub(super) type Reopen = Box<dyn Fn() -> Option<Arc<dyn ObjectStore>> + Send + Sync>;

/// A client that can be replaced while others use it.
pub(super) struct Endpoint {
    store: Mutex<Arc<dyn ObjectStore>>,
    reopen: Option<Reopen>,
}

impl Endpoint {
    pub(super) fn fixed(store: Arc<dyn ObjectStore>) -> Self {
        Self { store: Mutex::new(store), reopen: None }
    }

    pub(super) fn reopened_by(store: Arc<dyn ObjectStore>, reopen: Reopen) -> Self {
        Self { store: Mutex::new(store), reopen: Some(reopen) }
    }

    /// Wraps the current client and every later one in `layer`.
    pub(super) fn below(
        self,
        layer: impl Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync + 'static,
    ) -> Self {
        let store = Mutex::new(layer(self.store.into_inner()));
        let reopen = self.reopen.map(|reopen| -> Reopen { Box::new(move || reopen().map(&layer)) });
        Self { store, reopen }
    }

    pub(super) fn current(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store.lock())
    }

    /// Replaces `refused`, the client with rejected credentials. Returns whether the current client
    /// is now a different one. Of several requests that are rejected together, only the first
    /// replaces the client.
    pub(super) fn refresh(&self, refused: &Arc<dyn ObjectStore>) -> bool {
        let Some(reopen) = &self.reopen else { return false };
        let mut store = self.store.lock();
        if !Arc::ptr_eq(&store, refused) {
            return true;
        }
        match reopen() {
            Some(fresh) => {
                *store = fresh;
                true
            }
            None => false,
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.current()).finish()
    }
}
