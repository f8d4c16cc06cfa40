//! Live mounts: mounts snapshots into running sandboxes, and unmounts them.

use std::sync::Arc;
use std::time::Duration;

use inlay_base::inject::Step;
use inlay_base::record::Unknown;
use inlay_mounts::{
    Caller, Changes, Claim, MakePath, MountError, MountRecord, Owner, PathText, Standing, Umount,
    UpperPlace, Wanted, WantedView,
};
use inlay_snapshots::{EMPTY, keep_empty};
use tokio::task::spawn_blocking;

use super::mounted::{MountFile, MountFileState as FilePlace, files, free_number};
use super::{Sandbox, Service, injected};
use crate::daemon::api::{IntoView, MountInto, MountOrigin, MountedIn, UmountFrom, UmountedFrom};
use crate::daemon::cancel_on_drop::unless_given_up;
use crate::daemon::error::DaemonError;
use crate::daemon::idempotency::RequestKey;
use crate::daemon::lifecycle::InFlight;
use crate::daemon::new_mount::{Claimed, MountPoint, NewMount};
use crate::daemon::service::Attach;
use crate::daemon::snapshots::Shape;

/// A new mount in a sandbox.
struct NewLiveMount {
    sandbox: Arc<Sandbox>,
    /// Rolls the mount back unless kept.
    mount: NewMount,
    file: MountFile,
}

/// Whether a mount continues the changes of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FromBefore {
    Yes,
    No,
}

impl FromBefore {
    /// Undoes a mount whose client is gone. Blocks.
    fn roll_back(
        self,
        service: &Service,
        record: &MountRecord,
        sandbox: &Sandbox,
        file: MountFile,
    ) -> Result<(), DaemonError> {
        // The next mount at this path looks for changes only after this is done.
        let _turn = sandbox.turn.blocking_lock();
        service.mount_table().undo(record)?;
        self.forget(sandbox, file)
    }

    /// Records that a mount ended before its client learned of it.
    fn forget(self, sandbox: &Sandbox, file: MountFile) -> Result<(), DaemonError> {
        match self {
            Self::No => sandbox.forget_mount(&file),
            Self::Yes => MountFile { place: FilePlace::Kept, ..file }.write(sandbox.layout()),
        }
    }
}

impl Service {
    /// Mounts a snapshot into a sandbox. Cancel-safe: if the future is dropped or `limit` passes,
    /// nothing of the mount stays. Idempotent: if an earlier attempt with the same `key` created
    /// the mount, returns that mount.
    pub(in crate::daemon) async fn mount_into(
        &self,
        reference: &str,
        request: MountInto,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountedIn, DaemonError> {
        let mount = self.mount_into_within(reference, request, key, limit);
        self.activity().live_mounts.of(mount).await
    }

    async fn mount_into_within(
        &self,
        reference: &str,
        request: MountInto,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountedIn, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let in_flight = self.lifecycle().admit()?;
        let service = self.clone();
        let work = async move { service.make_into(sandbox, request, key, in_flight).await };
        let mut made = unless_given_up(limit, work).await?;
        // If the caller goes away now, the result is dropped and the mount undone.
        let sandbox = Arc::clone(&made.sandbox);
        let confirmed = sandbox.in_turn(move |sandbox| {
            if made.file.place != FilePlace::Mounted {
                made.file.place = FilePlace::Mounted;
                made.file.write(sandbox.layout())?;
            }
            injected(Step::LiveMountWritten)?;
            made.mount.confirm()?;
            Ok(made)
        });
        let NewLiveMount { sandbox, mount, file } = confirmed.await?;
        mount.keep();
        let MountFile { path, snapshot, view, .. } = file;
        self.mark("mounted", || format!("{}:{}", sandbox.id(), path.to_path().display()));
        Ok(MountedIn { path, snapshot, view })
    }

    async fn make_into(
        &self,
        sandbox: Arc<Sandbox>,
        request: MountInto,
        key: Option<RequestKey>,
        in_flight: InFlight,
    ) -> Result<NewLiveMount, DaemonError> {
        let path = request.path.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let key = key.map(|RequestKey(key)| key);
        let make = MakePath::OwnedBy(Owner::ROOT);
        let wanted = MountPoint { caller: sandbox.caller()?, path, make, key: key.clone() };
        let claim = match self.claim(&wanted).await? {
            Claimed::Free(claim) => *claim,
            Claimed::Taken(record) => {
                let file = self.made_before(&sandbox, (*record).clone()).await?;
                return Ok(self.guarded(sandbox, *record, (file, FromBefore::Yes), in_flight));
            }
        };
        if request.snapshot == EMPTY {
            let service = self.clone();
            let kept = spawn_blocking(move || keep_empty(service.snapshots().state()));
            kept.await.map_err(|_| DaemonError::Panicked)??;
        }
        let empty = inlay_snapshots::empty_id().to_string();
        let snapshot = if request.snapshot == EMPTY { &empty } else { &request.snapshot };
        let shape = match request.view {
            IntoView::ReadOnly => Shape::Alone,
            IntoView::Writable => Shape::Below,
        };
        let (store, load) = (&request.store, &request.load);
        let (cache, chown, origin) = (request.cache, request.owner, MountOrigin::Command);
        let wanted = Attach { snapshot, store, cache, load, origin, chown };
        let attached = self.attach(wanted, shape).await?;
        let wanted = Wanted {
            chown: request.owner,
            key,
            standing: Standing::Unconfirmed,
            ..self.wanted(attached, WantedView::ReadOnly, Some(sandbox.id().to_string()))?
        };
        let service = self.clone();
        let (store, view) = (request.store, request.view);
        sandbox
            .in_turn(move |sandbox| {
                sandbox.running()?;
                service.put_into(sandbox, claim, wanted, (store, view), in_flight)
            })
            .await
    }

    /// Records the mount in the sandbox, then creates it. Called in the sandbox's turn. Blocks.
    fn put_into(
        &self,
        sandbox: &Arc<Sandbox>,
        claim: Claim,
        wanted: Wanted,
        (store, view): (crate::daemon::api::StoreRef, IntoView),
        in_flight: InFlight,
    ) -> Result<NewLiveMount, DaemonError> {
        let layout = sandbox.layout();
        let (file, changes) = self.note(sandbox, &claim, &wanted, (store, view))?;
        let view = match view {
            IntoView::ReadOnly => WantedView::ReadOnly,
            IntoView::Writable => {
                let upper = PathText::from(&*layout.mount_upper(file.number));
                WantedView::Writable(UpperPlace::Kept(upper))
            }
        };
        let slots = [Some(wanted.top.slot), wanted.below.as_ref().map(|below| below.slot)];
        let made = injected(Step::LiveMountNoted).and_then(|()| {
            let wanted = Wanted { view, file: Some(file.number), ..wanted };
            Ok(self.mount_table().create(claim, wanted)?)
        });
        let record = match made {
            Ok(record) => record,
            Err(error) => {
                changes.forget(sandbox, file)?;
                return Err(error);
            }
        };
        let owners = record.owners.clone();
        // From here on the mount is undone unless kept, however this ends.
        let mut made = self.guarded(Arc::clone(sandbox), record, (file, changes), in_flight);
        // Written when the mount is confirmed.
        made.file.owners = owners;
        slots.into_iter().flatten().for_each(|slot| self.snapshots().release_pages_of(slot));
        Ok(made)
    }

    fn guarded(
        &self,
        sandbox: Arc<Sandbox>,
        record: MountRecord,
        (file, changes): (MountFile, FromBefore),
        in_flight: InFlight,
    ) -> NewLiveMount {
        let (held, noted) = (Arc::clone(&sandbox), file.clone());
        let mount = NewMount::new(self.clone(), record, in_flight, move |service, record| {
            changes.roll_back(service, record, &held, noted)
        });
        NewLiveMount { sandbox, mount, file }
    }

    /// Records that a mount is about to be created: an earlier one with kept changes, or a new one.
    /// Blocks.
    fn note(
        &self,
        sandbox: &Sandbox,
        claim: &Claim,
        wanted: &Wanted,
        (store, view): (crate::daemon::api::StoreRef, IntoView),
    ) -> Result<(MountFile, FromBefore), DaemonError> {
        let layout = sandbox.layout();
        let known = files(layout)?;
        let live: Vec<u32> =
            self.live_mounts(sandbox)?.into_iter().map(|(_, file)| file.number).collect();
        let on = self.on(sandbox, claim)?;
        let path = PathText::from(claim.path());
        let before = known.iter().find(|file| {
            // One that was moved since is still mounted, though elsewhere.
            file.place != FilePlace::Discarded
                && !live.contains(&file.number)
                && file.path == path
                && file.snapshot == wanted.snapshot
                && file.view == view
                && file.chown == wanted.chown
        });
        let (file, changes) = if let Some(file) = before {
            (MountFile { place: FilePlace::Making, on, ..file.clone() }, FromBefore::Yes)
        } else {
            let file = MountFile {
                number: free_number(layout, &known)?,
                path,
                snapshot: wanted.snapshot,
                store,
                view,
                chown: wanted.chown,
                owners: None,
                place: FilePlace::Making,
                on,
                unknown: Unknown::default(),
            };
            (file, FromBefore::No)
        };
        file.write(layout)?;
        Ok((file, changes))
    }

    /// Returns the record of a mount in a sandbox that an earlier attempt of the same request made.
    async fn made_before(
        &self,
        sandbox: &Arc<Sandbox>,
        record: MountRecord,
    ) -> Result<MountFile, DaemonError> {
        let (service, sandbox) = (self.clone(), Arc::clone(sandbox));
        let found = spawn_blocking(move || {
            let mut live = service.live_mounts(&sandbox)?.into_iter();
            let same = live.find(|(live, _)| live.seen == record.seen);
            same.map(|(_, file)| file).ok_or_else(|| {
                let (mountpoint, snapshot) = (record.mountpoint.to_path(), record.snapshot);
                MountError::AlreadyMounted { mountpoint, snapshot }.into()
            })
        });
        found.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Unmounts a snapshot from a sandbox.
    pub(in crate::daemon) async fn umount_from(
        &self,
        reference: &str,
        request: UmountFrom,
    ) -> Result<UmountedFrom, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let in_flight = self.lifecycle().admit()?;
        let service = self.clone();
        sandbox
            .in_turn(move |sandbox| {
                let _in_flight = in_flight;
                let done = service.take_out(sandbox, &request);
                service.sweep();
                done
            })
            .await
    }

    fn take_out(
        &self,
        sandbox: &Sandbox,
        request: &UmountFrom,
    ) -> Result<UmountedFrom, DaemonError> {
        let path = request.path.to_path();
        let caller: Caller = sandbox.caller()?;
        let at = self.mount_table().find(&caller, &path)?;
        let live = self.live_mounts(sandbox)?;
        let found = live
            .into_iter()
            .find(|(record, _)| at.as_ref().is_some_and(|at| at.seen == record.seen));
        let Some((record, file)) = found else {
            let moved = self.mount_table().moved_from(sandbox.id().as_str(), &path);
            let sandbox = sandbox.record.lock().name.clone();
            return Err(DaemonError::NotMountedIn { sandbox, path, moved });
        };
        if request.changes == Changes::Discard {
            MountFile { place: FilePlace::Discarded, ..file.clone() }.write(sandbox.layout())?;
        }
        let ended = self.mount_table().unmount_recorded(&record, request.how, request.changes);
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // If it is gone and only the cleanup failed, it counts as unmounted; otherwise it
                // stays mounted.
                let place = match record.seen.is_mounted() {
                    Ok(false) if request.changes == Changes::Discard => FilePlace::Discarded,
                    Ok(false) => FilePlace::Kept,
                    _ => FilePlace::Mounted,
                };
                MountFile { place, ..file }.write(sandbox.layout())?;
                return Err(error.into());
            }
        };
        injected(Step::LiveUmounted)?;
        let unchanged = !file.is_changed(sandbox.layout());
        let discard = request.changes == Changes::Discard || unchanged;
        let place = match (discard, ended.in_use) {
            (true, false) => None,
            // A program still writes there; no mount will show these changes again.
            (true, true) => Some(FilePlace::Discarded),
            (false, _) => Some(FilePlace::Kept),
        };
        match place {
            None => sandbox.forget_mount(&file)?,
            Some(place) => MountFile { place, ..file.clone() }.write(sandbox.layout())?,
        }
        if request.how == Umount::Lazily {
            // A lazy unmount also takes the mounts inside it.
            self.mount_table().sweep();
            self.note_unmounted(sandbox)?;
        }
        Ok(UmountedFrom {
            path: file.path,
            snapshot: file.snapshot,
            in_use: ended.in_use,
            changes_kept: !discard,
        })
    }
}
