//! Watches the requests to one store.

use inlay_prefetch::{Class, FetchEvent, FetchWatch};

use super::recorder::Recorder;
use crate::trace::clock;
use crate::trace::model::FetchClass;

/// Names what fetches from one store, among all of a recorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(pub(super) u32);

/// Tells recordings of a store's requests.
#[derive(Debug)]
pub struct StoreWatch {
    pub(super) id: WatchId,
    pub(super) recorder: Recorder,
}

impl StoreWatch {
    /// Which it is.
    pub fn id(&self) -> WatchId {
        self.id
    }
}

impl FetchWatch for StoreWatch {
    fn is_on(&self) -> bool {
        self.recorder.is_on()
    }

    fn told(&self, event: &FetchEvent<'_>) {
        let now = clock::now();
        self.recorder.each(|recording| recording.buffer.lock().told(self.id, event, now));
    }
}

/// A class of requests in a trace.
pub(super) fn class(class: Class) -> FetchClass {
    match class {
        Class::Demand => FetchClass::Demand,
        Class::ReadAhead => FetchClass::ReadAhead,
        Class::Directory => FetchClass::Directory,
        Class::Profile => FetchClass::Profile,
        Class::Rest => FetchClass::Rest,
    }
}
