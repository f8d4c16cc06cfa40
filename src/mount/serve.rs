//! Serves one mount in this process until it is told to stop or the mount is gone.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use inlay_fusefs::{ContentSource, IfBusy, Mount, MountOptions};
use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::error::MountError;
use super::overlay::{Layers, Overlay};
use super::process::ProcessId;
use super::record::{MountId, MountRecord, PathText, View};
use super::registry::Registry;
use super::upper::{Keep, Upper, UpperPlace};

/// How the caller wants to see a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedView {
    /// As it is.
    ReadOnly,
    /// Writable; changes go to a place on this host.
    Writable(UpperPlace),
}

/// What to mount, where and how.
pub struct Request {
    /// The state directory.
    pub state: PathBuf,
    /// The snapshot's id.
    pub snapshot: SnapshotId,
    /// Its index.
    pub index: Index,
    /// Who serves its files' contents.
    pub source: Arc<dyn ContentSource>,
    /// Where: an existing directory.
    pub mountpoint: PathBuf,
    /// How.
    pub view: WantedView,
    /// Details of the FUSE mount.
    pub options: MountOptions,
}

/// Why serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to stop.
    Stopped,
    /// Somebody unmounted it.
    Unmounted,
}

/// Mounts, calls `ready` when the files are there, and serves until `stop` is done or the mount is
/// gone. Then nothing of it is left: no mount, no record, no scratch directory. Told to stop, it
/// unmounts even what is in use.
pub async fn serve(
    request: Request,
    ready: impl FnOnce(&MountRecord),
    stop: impl Future<Output = ()>,
) -> Result<Ending, MountError> {
    let started = spawn_blocking(move || Served::start(request)).await;
    let served = started.map_err(|_| MountError::Panicked)??;
    ready(&served.record);
    let ending = tokio::select! {
        () = stop => Ending::Stopped,
        () = served.gone() => Ending::Unmounted,
    };
    spawn_blocking(move || served.finish()).await.map_err(|_| MountError::Panicked)??;
    Ok(ending)
}

/// Done when this process is asked to end, by SIGTERM or SIGINT. The signals are caught from the
/// call on, so call it before mounting.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A mount with all that belongs to it. [`Served::finish`] ends it; should it be dropped instead,
/// the next who looks at the registry clears up.
struct Served {
    registry: Registry,
    record: MountRecord,
    mount: Mount,
    overlay: Option<(Overlay, Upper)>,
}

impl Served {
    fn start(request: Request) -> Result<Self, MountError> {
        let registry = Registry::open(&request.state)?;
        // First, because a dead mount on the mount point would make it look like no directory.
        if let Err(error) = registry.sweep() {
            tracing::warn!(%error, "can't clear away what a dead process left behind");
        }
        let mountpoint = existing_directory(&request.mountpoint)?;
        let view = view(&request, &registry, &MountId::of(&mountpoint))?;
        let record = MountRecord {
            mountpoint: mountpoint.as_path().into(),
            snapshot: request.snapshot,
            server: ProcessId::this()
                .map_err(MountError::io("read", "/proc/self/stat".as_ref()))?,
            view,
        };
        registry.add(&record)?;
        match mount_all(request, &record, &mountpoint) {
            Ok((mount, overlay)) => Ok(Self { registry, record, mount, overlay }),
            Err(error) => {
                if let Err(left) = registry.remove(&record) {
                    tracing::warn!(error = %left, "a mount that failed left something behind");
                }
                Err(error)
            }
        }
    }

    /// Waits until the mount is gone from where the user saw it, and its last user with it.
    async fn gone(&self) {
        let (sender, ended) = oneshot::channel::<()>();
        self.mount.ended().then(move || drop(sender));
        let mut ended = pin!(async { drop(ended.await) });
        if let Some((overlay, _)) = &self.overlay {
            match overlay.watch() {
                Ok(mut watch) => tokio::select! {
                    () = &mut ended => return,
                    () = watch.gone() => {}
                },
                Err(error) => {
                    tracing::warn!(%error, "can't watch the table of mounts");
                    return ended.await;
                }
            }
            // What has files of the overlay open goes on being served.
            if let Err(error) = self.mount.detach() {
                tracing::warn!(%error, "the snapshot below the overlay stays mounted");
            }
        }
        ended.await;
    }

    /// Ends all of it. What fails is reported, but stops nothing.
    fn finish(self) -> Result<(), MountError> {
        let Self { registry, record, mut mount, overlay } = self;
        let (overlay, upper) = overlay.unzip();
        let mut outcomes = vec![overlay.map_or(Ok(()), |overlay| overlay.unmount_or_detach())];
        outcomes.push(mount.unmount(IfBusy::Force).map_err(MountError::from));
        outcomes.push(upper.map_or(Ok(()), Upper::release));
        outcomes.push(registry.remove(&record));
        outcomes.into_iter().collect()
    }
}

fn view(request: &Request, registry: &Registry, id: &MountId) -> Result<View, MountError> {
    let WantedView::Writable(place) = &request.view else { return Ok(View::ReadOnly) };
    let (upper, keep) = match place {
        UpperPlace::Scratch => (request.state.join("upper").join(id.as_str()), Keep::Scratch),
        UpperPlace::Kept(path) => (path.clone(), Keep::Kept),
    };
    let absolute = |path: &Path| std::path::absolute(path).map_err(MountError::io("find", path));
    Ok(View::Writable {
        lower: PathText::from(absolute(&registry.private_dir(id).join("lower"))?.as_path()),
        upper: PathText::from(absolute(&upper)?.as_path()),
        keep,
    })
}

fn mount_all(
    request: Request,
    record: &MountRecord,
    mountpoint: &Path,
) -> Result<(Mount, Option<(Overlay, Upper)>), MountError> {
    let Request { snapshot, index, source, options, .. } = request;
    let View::Writable { lower, upper, keep } = &record.view else {
        return Ok((Mount::new(index, source, mountpoint, &options)?, None));
    };
    let lower = lower.to_path();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&lower)
        .map_err(MountError::io("make the directory", &lower))?;
    let mut mount = Mount::new(index, source, &lower, &options)?;
    let above = || {
        let upper = Upper::prepare(&upper.to_path(), *keep, snapshot, &lower)?;
        let layers = Layers { lower: lower.clone(), upper: upper.upper(), work: upper.work() };
        match Overlay::mount(&layers, mountpoint, options.privileges) {
            Ok(overlay) => Ok((overlay, upper)),
            Err(error) => {
                upper.release()?;
                Err(error)
            }
        }
    };
    match above() {
        Ok(above) => Ok((mount, Some(above))),
        Err(error) => {
            mount.unmount(IfBusy::Force)?;
            Err(error)
        }
    }
}

fn existing_directory(path: &Path) -> Result<PathBuf, MountError> {
    let wrong = |why| inlay_fusefs::MountError::Mountpoint { path: path.to_owned(), why };
    let real = path.canonicalize().map_err(wrong)?;
    if real.metadata().map_err(wrong)?.is_dir() {
        Ok(real)
    } else {
        Err(wrong(io::ErrorKind::NotADirectory.into()).into())
    }
}
