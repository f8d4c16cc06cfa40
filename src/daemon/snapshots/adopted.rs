//! Adopts the slots that an earlier daemon of the session attached: each is reopened at its first
//! request.

use std::collections::HashMap;
use std::sync::Arc;

use inlay_base::boot::LastServed;
use inlay_base::record::RecordError;
use inlay_fusefs::keeper::KeptSlot;
use inlay_fusefs::{Opener, Restored, Slot};
use inlay_store::format::Index;

use super::{OpenSlot, Serving, Snapshots, SnapshotsInner, Use, Uses};
use crate::daemon::api::{LoadOptions, Prefetch};
use crate::daemon::attached_records::{AttachKey, AttachedFile};
use crate::daemon::error::DaemonError;
use crate::daemon::tracking::Begins;

impl Snapshots {
    /// Adopts the slots that an earlier daemon of this session attached. Returns an opener for
    /// each, called at its first request, and the [`Uses`] that keep them attached. The caller must
    /// not drop a use before the server runs; dropping it detaches the slot.
    pub(in crate::daemon) fn restore(
        &self,
        slots: &[KeptSlot],
        last: LastServed,
    ) -> Result<(Vec<Restored>, Uses), DaemonError> {
        let inner = &self.inner;
        let loaded = inner.files.load(last)?;
        let mut known: HashMap<u32, AttachedFile> =
            loaded.files.into_iter().map(|file| (file.slot, file)).collect();
        let mut damaged: HashMap<u32, RecordError> = loaded.damaged.into_iter().collect();
        let mut restored = Vec::new();
        let mut uses = Uses::new();
        for kept in slots {
            // No file: the earlier daemon died before anything of the slot could be mounted.
            let number = kept.slot.get();
            let made = Arc::new(Use { inner: Arc::downgrade(inner), slot: kept.slot });
            if let Some(error) = damaged.remove(&number) {
                tracing::error!(%error, slot = number, "reads of the attached snapshot fail");
                restored.push(Restored { slot: kept.slot, opener: inner.later_opener(kept.slot) });
                uses.insert(number, made);
                let serving = Serving { key: None, open: None, ending: None };
                inner.serving.lock().insert(number, serving);
                inner.damaged.lock().push((number, error));
                continue;
            }
            let Some(AttachedFile { key, load, .. }) = known.remove(&number) else { continue };
            let opener = inner.opener(kept.slot, key.clone(), load.clone());
            restored.push(Restored { slot: kept.slot, opener });
            if !kept.detached
                && let Ok(mut current) = inner.cell(&key).try_lock()
            {
                *current = Arc::downgrade(&made);
            }
            inner
                .serving
                .lock()
                .insert(number, Serving { key: Some(key), open: None, ending: None });
            uses.insert(number, made);
        }
        for left in known.into_keys().chain(damaged.into_keys()) {
            // The kernel has forgotten it.
            inner.files.remove(left)?;
        }
        Ok((restored, uses))
    }

    /// Resumes prefetching of adopted snapshots: opens them in the background rather than at their
    /// first request. The server must be running.
    pub(in crate::daemon) fn resume(&self) -> Result<(), DaemonError> {
        let inner = &self.inner;
        let files = inner.files.load(LastServed::ThisBoot)?.files.into_iter();
        let mut slots: Vec<u32> = {
            let serving = inner.serving.lock();
            let loaded = files.filter(|file| {
                let seen = serving.get(&file.slot).is_some_and(|of| of.ending.is_none());
                seen && file.load.prefetch != Prefetch::Off
            });
            loaded.map(|file| file.slot).collect()
        };
        // In the order of attachment: the newest snapshot stays the newest to prefetching.
        slots.sort_unstable();
        let (server, tasks) = (inner.server.clone(), &inner.tasks);
        let open = move || {
            for slot in slots.into_iter().filter_map(Slot::new) {
                if let Err(error) = server.open(slot) {
                    // Readers of the slot get the error.
                    tracing::debug!(%slot, %error, "not prefetching it");
                }
            }
        };
        tasks.spawn_blocking_on(open, &inner.runtime);
        Ok(())
    }
}

impl SnapshotsInner {
    /// Returns the opener of an adopted slot. It runs on a FUSE thread and may block.
    pub(super) fn opener(
        self: &Arc<Self>,
        slot: Slot,
        key: AttachKey,
        load: LoadOptions,
    ) -> Opener {
        let inner = Arc::downgrade(self);
        Box::new(move || {
            let inner = inner.upgrade().ok_or("the daemon is about to end")?;
            let store = inner.stores.get(&key.store, key.cache)?;
            let index: Index = inner.runtime.block_on(inner.index(&store.remote, key.snapshot))?;
            let early = inner.trackings.fetch(&store.remote, key.snapshot, &load);
            let view = inner.view(&key);
            let begins = Begins::Earlier;
            let (open, fs) = inner.open(&store, index, &key, &load, begins, Some(early), view);
            inner.opened(slot, open);
            Ok(fs)
        })
    }

    /// Records that an adopted slot is open. If it is detached already, only its last users read
    /// it, and it leaves its tracking here: [`Self::detach`] found it unopened.
    fn opened(&self, slot: Slot, open: OpenSlot) {
        let tracking = Arc::clone(&open.tracking);
        let detached = match self.serving.lock().get_mut(&slot.get()) {
            Some(serving) => {
                serving.open = Some(open);
                serving.ending.is_some()
            }
            None => true,
        };
        if detached {
            tracking.leave();
        }
    }

    /// Returns the opener of a slot with a damaged file: each request retries until the file is
    /// repaired.
    fn later_opener(self: &Arc<Self>, slot: Slot) -> Opener {
        let inner = Arc::downgrade(self);
        Box::new(move || {
            let inner = inner.upgrade().ok_or("the daemon is about to end")?;
            let file = inner.files.read(slot.get())?.ok_or("its record is gone")?;
            if let Some(serving) = inner.serving.lock().get_mut(&slot.get()) {
                serving.key = Some(file.key.clone());
            }
            inner.opener(slot, file.key, file.load)()
        })
    }
}
