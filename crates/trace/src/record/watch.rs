//! Observes the requests to one store.

use inlay_prefetch::{Class, FetchEvent, FetchWatch};

use super::recorder::Recorder;
use crate::clock;
use crate::model::FetchClass;

/// Identity of a store's watch within a recorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(pub(super) u32);

/// Forwards a store's requests to the recordings.
#[derive(Debug)]
pub struct StoreWatch {
    pub(super) id: WatchId,
    pub(super) recorder: Recorder,
}

impl StoreWatch {
    /// Id of the watch.
    pub fn id(&self) -> WatchId {
        self.id
    }
}

impl FetchWatch for StoreWatch {
    fn is_on(&self) -> bool {
        self.recorder.is_on()
    }

    fn on_event(&self, event: &FetchEvent<'_>) {
        let now = clock::now();
        self.recorder.each(|recording| recording.buffer.lock().on_event(self.id, event, now));
    }
}

/// Converts a scheduler class to a class in a trace.
pub(super) fn class(class: Class) -> FetchClass {
    match class {
        Class::Demand => FetchClass::Demand,
        Class::ReadAhead => FetchClass::ReadAhead,
        Class::Directory => FetchClass::Directory,
        Class::Profile => FetchClass::Profile,
        Class::Rest => FetchClass::Rest,
    }
}
