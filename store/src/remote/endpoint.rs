//! The store's client, and its replacement when the credentials it holds have expired.

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use parking_lot::Mutex;

/// Makes a client with the credentials that hold now.
pub(super) type Reopen = Box<dyn Fn() -> Option<Arc<dyn ObjectStore>> + Send + Sync>;

/// A client that can be replaced under those who use it.
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

    /// The same, with each client put into `layer`.
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

    /// Replaces `refused`, the client whose credentials were refused, by a new one. Says whether
    /// another client than `refused` is there now: of many requests that were refused together,
    /// only the first replaces it.
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
