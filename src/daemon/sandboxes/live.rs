//! Live mounts: mounts snapshots into running sandboxes, and unmounts them.

use std::path::Path;
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
use crate::daemon::error::DaemonError;
use crate::daemon::given_up::unless_given_up;
use crate::daemon::once::RequestKey;
use crate::daemon::service::{Attach, LOOK_AGAIN, UnderWay};
use crate::daemon::snapshots::Shape;

/// Attempts to claim a mount point that another request claims or undoes: ten seconds in all.
const TRIES_OF_CLAIM: u32 = 1000;

/// A new mount. Unless taken, it is undone on drop: its client is gone.
struct MadeInto {
    service: Service,
    sandbox: Arc<Sandbox>,
    record: Option<MountRecord>,
    file: MountFile,
    /// Whether it reuses the kept changes of an earlier mount.
    changes: FromBefore,
    under_way: Option<UnderWay>,
}

/// Whether a mount continues the changes of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FromBefore {
    Yes,
    No,
}

impl Drop for MadeInto {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else { return };
        // Marked before any other request can see that the caller is gone.
        self.service.mount_table().doom(&record);
        let (service, sandbox) = (self.service.clone(), Arc::clone(&self.sandbox));
        let (file, changes, under_way) = (self.file.clone(), self.changes, self.under_way.take());
        tracing::info!(
            sandbox = %sandbox.id(),
            mountpoint = %record.mountpoint.to_path().display(),
            "undoing a mount: the caller disconnected"
        );
        spawn_blocking(move || {
            // The next mount at this path looks for changes only after this is done.
            let _turn = sandbox.turn.blocking_lock();
            let undone = service.mount_table().undo(&record).map_err(DaemonError::from);
            let undone = undone.and_then(|()| match changes {
                FromBefore::No => sandbox.forget_mount(&file),
                FromBefore::Yes => {
                    MountFile { place: FilePlace::Kept, ..file }.write(sandbox.layout())
                }
            });
            if let Err(error) = undone {
                tracing::warn!(%error, "can't undo a cancelled mount completely");
            }
            service.look();
            drop(under_way);
        });
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
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let service = self.clone();
        let work = async move { service.make_into(sandbox, request, key, under_way).await };
        let mut made = unless_given_up(limit, work).await?;
        // If the caller goes away now, the result is dropped and the mount undone.
        let sandbox = Arc::clone(&made.sandbox);
        let confirmed = sandbox.in_turn(move |sandbox| {
            if made.file.place != FilePlace::Mounted {
                made.file.place = FilePlace::Mounted;
                made.file.write(sandbox.layout())?;
            }
            injected(Step::LiveMountWritten)?;
            if let Some(record) = &mut made.record {
                *record = made.service.mount_table().confirm(record)?;
            }
            Ok(made)
        });
        let mut made = confirmed.await?;
        made.record = None;
        let MountFile { path, snapshot, view, .. } = made.file.clone();
        self.mark("mounted", || format!("{}:{}", made.sandbox.id(), path.to_path().display()));
        Ok(MountedIn { path, snapshot, view })
    }

    async fn make_into(
        &self,
        sandbox: Arc<Sandbox>,
        request: MountInto,
        key: Option<RequestKey>,
        under_way: UnderWay,
    ) -> Result<MadeInto, DaemonError> {
        let path = request.path.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let key = key.map(|RequestKey(key)| key);
        let claim = match self.claim_in_patiently(&sandbox, &path, key.as_deref()).await? {
            Place::Free(claim) => claim,
            Place::Taken(record, file) => {
                let (service, changes) = (self.clone(), FromBefore::Yes);
                let (record, under_way) = (Some(*record), Some(under_way));
                return Ok(MadeInto { service, sandbox, record, file, changes, under_way });
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
                service.put_into(sandbox, claim, wanted, (store, view), under_way)
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
        under_way: UnderWay,
    ) -> Result<MadeInto, DaemonError> {
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
                match changes {
                    FromBefore::No => sandbox.forget_mount(&file)?,
                    FromBefore::Yes => {
                        MountFile { place: FilePlace::Kept, ..file }.write(layout)?;
                    }
                }
                return Err(error);
            }
        };
        let owners = record.owners.clone();
        // From here on the mount is undone unless taken, however this ends.
        let mut made = MadeInto {
            service: self.clone(),
            sandbox: Arc::clone(sandbox),
            record: Some(record),
            file,
            changes,
            under_way: Some(under_way),
        };
        // Written when the mount is confirmed.
        made.file.owners = owners;
        slots.into_iter().flatten().for_each(|slot| self.snapshots().release_pages_of(slot));
        Ok(made)
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

    /// Claims `path` in a sandbox for a mount. Retries while another mount there is being created
    /// or undone.
    async fn claim_in_patiently(
        &self,
        sandbox: &Arc<Sandbox>,
        path: &Path,
        key: Option<&str>,
    ) -> Result<Place, DaemonError> {
        for _ in 0..TRIES_OF_CLAIM {
            let (service, sandbox) = (self.clone(), Arc::clone(sandbox));
            let (path, key) = (path.to_owned(), key.map(str::to_owned));
            let claimed = spawn_blocking(move || service.claim_in(&sandbox, &path, key.as_deref()));
            if let Some(place) = claimed.await.map_err(|_| DaemonError::Panicked)?? {
                return Ok(place);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(MountError::BeingMounted(path.to_owned()).into())
    }

    /// Returns the claim; `None` if the caller has to retry. Blocks.
    fn claim_in(
        &self,
        sandbox: &Sandbox,
        path: &Path,
        key: Option<&str>,
    ) -> Result<Option<Place>, DaemonError> {
        let caller = sandbox.caller()?;
        match self.mount_table().claim(&caller, path, MakePath::OwnedBy(Owner::ROOT)) {
            Ok(claim) => Ok(Some(Place::Free(claim))),
            Err(MountError::BeingMounted(_)) => Ok(None),
            Err(error @ MountError::AlreadyMounted { .. }) => {
                let Some(at) = self.mount_table().find(&caller, path)? else { return Ok(None) };
                if key.is_none() || at.key.as_deref() != key {
                    return Err(error.into());
                }
                let mut live = self.live_mounts(sandbox)?.into_iter();
                let same = live.find(|(record, _)| record.seen == at.seen);
                let (record, file) = same.ok_or(error)?;
                Ok(Some(Place::Taken(Box::new(record), file)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Unmounts a snapshot from a sandbox.
    pub(in crate::daemon) async fn umount_from(
        &self,
        reference: &str,
        request: UmountFrom,
    ) -> Result<UmountedFrom, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let service = self.clone();
        sandbox
            .in_turn(move |sandbox| {
                let _under_way = under_way;
                let done = service.take_out(sandbox, &request);
                service.look();
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
            self.mount_table().look();
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

enum Place {
    Free(Claim),
    /// An earlier attempt of the same request has mounted it.
    Taken(Box<MountRecord>, MountFile),
}
