//! Live mounts: a snapshot put into a sandbox that runs, and taken out again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::mounted::{MountFile, Place as FilePlace, files, free_number};
use super::{Sandbox, Service, injected};
use crate::daemon::api::{IntoView, MountInto, MountedIn, UmountFrom, UmountedFrom};
use crate::daemon::error::DaemonError;
use crate::daemon::given_up::unless_given_up;
use crate::daemon::once::RequestKey;
use crate::daemon::service::{Attach, LOOK_AGAIN, UnderWay};
use crate::daemon::snapshots::Shape;
use crate::inject::Step;
use crate::mount::{
    Caller, Changes, Claim, MakePath, MountError, MountRecord, Owner, PathText, Standing,
    UpperPlace, Wanted, WantedView,
};
use crate::snapshots::{EMPTY, keep_empty};

/// How often a mount point is tried that somebody else is about to use, or that is being undone: ten
/// seconds.
const TRIES_OF_CLAIM: u32 = 1000;

/// A mount that was just made. Dropped without being taken, it is undone: whoever wanted it is gone.
struct MadeInto {
    service: Service,
    sandbox: Arc<Sandbox>,
    record: Option<MountRecord>,
    file: MountFile,
    /// Whether its changes are those of an earlier mount, which are kept.
    changes: FromBefore,
    under_way: Option<UnderWay>,
}

/// Whether a mount goes on with what an earlier one has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FromBefore {
    Yes,
    No,
}

impl Drop for MadeInto {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else { return };
        // Before anybody else can see that the caller is gone.
        self.service.mount_table().doom(&record);
        let (service, sandbox) = (self.service.clone(), Arc::clone(&self.sandbox));
        let (file, changes, under_way) = (self.file.clone(), self.changes, self.under_way.take());
        tracing::info!(
            sandbox = %sandbox.id(),
            mountpoint = %record.mountpoint.to_path().display(),
            "a mount is undone, because its caller is gone"
        );
        spawn_blocking(move || {
            // Whoever mounts there next looks for changes only when this is done.
            let _turn = sandbox.turn.blocking_lock();
            let undone = service.mount_table().undo(&record).map_err(DaemonError::from);
            let undone = undone.and_then(|()| match changes {
                FromBefore::No => file.remove(sandbox.layout()),
                FromBefore::Yes => {
                    MountFile { place: FilePlace::Kept, ..file }.write(sandbox.layout())
                }
            });
            if let Err(error) = undone {
                tracing::warn!(%error, "something of a mount that nobody wants stays");
            }
            service.look();
            drop(under_way);
        });
    }
}

impl Service {
    /// Mounts into a sandbox. Should this future be dropped, or take longer than `limit`, nothing of
    /// the mount stays. If the request with this `key` has made it before, it is that mount.
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
        // Should nobody wait for it any more, what comes of it is dropped, and so undone.
        let confirmed = spawn_blocking(move || {
            if let Some(record) = &mut made.record {
                *record = made.service.mount_table().confirm(record)?;
            }
            Ok::<_, DaemonError>(made)
        });
        let mut made = confirmed.await.map_err(|_| DaemonError::Panicked)??;
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
        let empty = crate::snapshots::empty_id().to_string();
        let snapshot = if request.snapshot == EMPTY { &empty } else { &request.snapshot };
        let shape = match request.view {
            IntoView::ReadOnly => Shape::Alone,
            IntoView::Writable => Shape::Below,
        };
        let wanted =
            Attach { snapshot, store: &request.store, cache: request.cache, load: &request.load };
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

    /// Records the mount as the sandbox's, and makes it. Blocks.
    fn put_into(
        &self,
        sandbox: &Arc<Sandbox>,
        claim: Claim,
        wanted: Wanted,
        (store, view): (crate::daemon::api::StoreRef, IntoView),
        under_way: UnderWay,
    ) -> Result<MadeInto, DaemonError> {
        let layout = sandbox.layout();
        let known = files(layout)?;
        let path = PathText::from(claim.path());
        let before = known.iter().find(|file| {
            file.place != FilePlace::Discarded
                && file.path == path
                && file.snapshot == wanted.snapshot
                && file.view == view
                && file.chown == wanted.chown
        });
        let chown = wanted.chown;
        let (mut file, changes) = if let Some(file) = before {
            let file = MountFile { place: FilePlace::Mounted, ..file.clone() };
            file.write(layout)?;
            (file, FromBefore::Yes)
        } else {
            let number = free_number(layout, &known)?;
            let file = MountFile {
                number,
                path,
                snapshot: wanted.snapshot,
                store,
                view,
                chown,
                owners: None,
                place: FilePlace::Mounted,
            };
            file.write(layout)?;
            (file, FromBefore::No)
        };
        let view = match view {
            IntoView::ReadOnly => WantedView::ReadOnly,
            IntoView::Writable => {
                let upper = PathText::from(&*layout.mount_upper(file.number));
                WantedView::Writable(UpperPlace::Kept(upper))
            }
        };
        let slots = [Some(wanted.top.slot), wanted.below.as_ref().map(|below| below.slot)];
        let made = injected(Step::LiveMountNoted)
            .and_then(|()| Ok(self.mount_table().create(claim, Wanted { view, ..wanted })?));
        let record = match made {
            Ok(record) => record,
            Err(error) => {
                match changes {
                    FromBefore::No => file.remove(layout)?,
                    FromBefore::Yes => {
                        MountFile { place: FilePlace::Kept, ..file }.write(layout)?;
                    }
                }
                return Err(error);
            }
        };
        let owners = record.owners.clone();
        // From here on, whatever becomes of this, the mount is undone unless it is taken.
        let mut made = MadeInto {
            service: self.clone(),
            sandbox: Arc::clone(sandbox),
            record: Some(record),
            file: file.clone(),
            changes,
            under_way: Some(under_way),
        };
        if file.owners != owners {
            file.owners = owners;
            file.write(layout)?;
            made.file = file;
        }
        slots.into_iter().flatten().for_each(|slot| self.snapshots().release_pages_of(slot));
        Ok(made)
    }

    /// Takes `path` of a sandbox for a mount. One that is being made or undone is waited for.
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

    /// The place, unless it has to be waited for. Blocks.
    fn claim_in(
        &self,
        sandbox: &Sandbox,
        path: &Path,
        key: Option<&str>,
    ) -> Result<Option<Place>, DaemonError> {
        let caller = sandbox.caller()?;
        match self.mount_table().claim(caller, path, MakePath::OwnedBy(Owner::ROOT)) {
            Ok(claim) => Ok(Some(Place::Free(claim))),
            Err(MountError::BeingMounted(_)) => Ok(None),
            Err(error @ MountError::AlreadyMounted { .. }) => {
                let Some(at) = self.mount_table().find(caller, path)? else { return Ok(None) };
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

    /// Unmounts something from a sandbox.
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
        let at = self.mount_table().find(caller, &path)?;
        let live = self.live_mounts(sandbox)?;
        let found = live
            .into_iter()
            .find(|(record, _)| at.as_ref().is_some_and(|at| at.seen == record.seen));
        let Some((record, file)) = found else {
            let sandbox = sandbox.record.lock().name.clone();
            return Err(DaemonError::NotMountedIn { sandbox, path });
        };
        if request.changes == Changes::Discard {
            MountFile { place: FilePlace::Discarded, ..file.clone() }.write(sandbox.layout())?;
        }
        let ended = self.mount_table().unmount_recorded(&record, request.how, request.changes);
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // Unless it is gone, and only clearing up has failed, it goes on as it was.
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
            // Somebody still writes there; nobody sees it again.
            (true, true) => Some(FilePlace::Discarded),
            (false, _) => Some(FilePlace::Kept),
        };
        match place {
            None => file.remove(sandbox.layout())?,
            Some(place) => MountFile { place, ..file.clone() }.write(sandbox.layout())?,
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
    /// The same request has mounted it before.
    Taken(Box<MountRecord>, MountFile),
}
