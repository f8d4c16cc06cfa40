//! Plans a capture: which root, mounts and foreign file systems make up a directory of a sandbox at
//! this moment.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::in_root;
use inlay_base::inject::Step;
use inlay_capture::{
    Cancel, CaptureError, Frozen, Graft, LeftOut, LeftOutWhy, Lower, Plan, Stood, Subject,
    SubjectError, Thawed, Underneath, View,
};
use inlay_mounts::Owners;
use inlay_sandbox::{self, SandboxError, processes};
use inlay_snapshots::host::Site;
use inlay_snapshots::{empty_id, open_index};
use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, open};

use super::mounted::MountFile;
use super::places::{Visible, What};
use super::{Sandbox, Service, injected};
use crate::daemon::api::StoreRef;
use crate::daemon::error::DaemonError;

/// Timeout of one attempt to freeze a sandbox. A process that can't be frozen, e.g. because it
/// waits for a store, keeps all others frozen for that long.
const FREEZE_WITHIN: Duration = Duration::from_millis(250);
/// Attempts to freeze, with pauses that double: 9 s in all, of which the sandbox is frozen for 2 s.
const FREEZE_TRIES: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(2);
/// Maximum time a sandbox stays frozen. Then it is thawed and the snapshot fails.
const FROZEN_MAX: Duration = Duration::from_mins(1);
/// Mount point of secrets in every sandbox.
/// How often a pause checks whether the capture was cancelled.
const CHECK_CANCEL: Duration = Duration::from_millis(10);
const SECRETS: &str = "/run/secrets";

/// Scope of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Its root, as a difference from its image.
    Root,
    /// The directory visible at a path.
    Directory(PathBuf),
}

/// A sandbox as the subject of a capture.
pub(super) struct InSandbox<'a> {
    service: &'a Service,
    sandbox: Arc<Sandbox>,
    wanted: Wanted,
    site: Site<'a>,
    store: StoreRef,
    cancel: Cancel,
    /// How long this capture has kept the sandbox frozen.
    frozen: Mutex<Duration>,
    indexes: Mutex<HashMap<SnapshotId, Index>>,
}

impl<'a> InSandbox<'a> {
    pub(super) fn new(
        service: &'a Service,
        sandbox: Arc<Sandbox>,
        wanted: Wanted,
        (site, store): (Site<'a>, StoreRef),
        cancel: Cancel,
    ) -> Self {
        let (frozen, indexes) = (Mutex::default(), Mutex::default());
        Self { service, sandbox, wanted, site, store, cancel, frozen, indexes }
    }

    /// Returns the view of one of our mounts and its changes. Fails if the snapshot is in another
    /// store.
    fn view(
        &self,
        snapshot: SnapshotId,
        store: &StoreRef,
        (upper, owners): (Option<PathBuf>, Option<Owners>),
    ) -> Result<View, DaemonError> {
        if snapshot == empty_id() {
            return Ok(View { lower: None, upper, owners });
        }
        if *store != self.store {
            return Err(DaemonError::OtherStore { snapshot });
        }
        let known = self.indexes.lock().get(&snapshot).cloned();
        let index = if let Some(index) = known {
            index
        } else {
            let site = self.site;
            let index = site.wait(open_index(site.remote, site.state, snapshot))?;
            self.indexes.lock().insert(snapshot, index.clone());
            index
        };
        Ok(View { lower: Some(Lower { id: snapshot, index }), upper, owners })
    }

    fn root_view(&self) -> Result<View, DaemonError> {
        let origin = self.sandbox.origin()?;
        let snapshot = self.sandbox.record.lock().snapshot;
        let upper = self.sandbox.layout().rw().join("upper");
        self.view(snapshot, &origin.store, (Some(upper), None))
    }

    fn mount_view(&self, file: &MountFile) -> Result<View, DaemonError> {
        let shown = (file.upper(self.sandbox.layout()), file.owners.clone());
        self.view(file.snapshot, &file.store, shown)
    }

    /// Resolves symbolic links in `path`, as the sandbox sees it.
    fn real(&self, path: &Path, seen: &[Visible]) -> PathBuf {
        if let Ok(caller) = self.sandbox.caller() {
            return caller.locate(path);
        }
        let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        let live = |mount: &Visible| matches!(mount.what, What::Live(_));
        if seen.iter().any(|mount| live(mount) && path.starts_with(&mount.path)) {
            return path;
        }
        let rootfs = self.sandbox.layout().rootfs();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let found =
            open(&rootfs, flags, Mode::empty()).and_then(|root| in_root::open(root, &path, flags));
        let real = found.ok().and_then(|dir| {
            let real = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
            Some(Path::new("/").join(real.strip_prefix(&rootfs).ok()?))
        });
        real.unwrap_or(path)
    }

    fn planned(&self) -> Result<Plan, DaemonError> {
        let seen = self.service.visible(&self.sandbox)?;
        let at = match &self.wanted {
            Wanted::Root => PathBuf::from("/"),
            Wanted::Directory(path) => self.real(path, &seen),
        };
        let covering = seen.iter().filter(|mount| at.starts_with(&mount.path));
        let covering = covering.max_by_key(|mount| mount.path.components().count());
        let (view, inside) = match covering {
            Some(Visible { path, what: What::Live(file), .. }) => {
                (self.mount_view(file)?, path.as_path())
            }
            Some(Visible { kind, what: What::Other, .. }) => {
                return Err(DaemonError::NotOurs { path: at, kind: kind.clone() });
            }
            Some(Visible { what: What::Root, .. }) | None => (self.root_view()?, Path::new("/")),
        };
        let path = at.strip_prefix(inside).unwrap_or(Path::new("")).to_owned();
        let mut plan = Plan { view, path, grafts: Vec::new(), left_out: Vec::new() };
        let mut below: Vec<&Visible> = seen.iter().collect();
        below.retain(|mount| mount.path != at && mount.path.starts_with(&at));
        // Parents sort before the mounts on top of them.
        below.sort_by_key(|mount| mount.path.components().count());
        let mut others: Vec<&Path> = Vec::new();
        for mount in below {
            // A mount on top of something left out is not in the snapshot.
            if others.iter().any(|other| mount.path.starts_with(other)) {
                continue;
            }
            let relative = mount.path.strip_prefix(&at).unwrap_or(&mount.path).to_owned();
            let why = match (&mount.what, &self.wanted) {
                (What::Live(file), Wanted::Directory(_)) => {
                    let view = self.mount_view(file)?;
                    plan.grafts.push(Graft { at: relative, view, path: PathBuf::new() });
                    continue;
                }
                (What::Live(_), Wanted::Root) => LeftOutWhy::LiveMount,
                (_, _) if mount.path == Path::new(SECRETS) => LeftOutWhy::Secret,
                (What::Other | What::Root, _) => LeftOutWhy::FileSystem(mount.kind.clone()),
            };
            let underneath = match self.wanted {
                Wanted::Root => Underneath::Kept,
                Wanted::Directory(_) => Underneath::Empty,
            };
            others.push(&mount.path);
            plan.left_out.push(LeftOut { path: relative, why, underneath });
        }
        Ok(plan)
    }
}

impl Subject for InSandbox<'_> {
    fn plan(&self) -> Result<Plan, SubjectError> {
        Ok(self.planned()?)
    }

    fn freeze(&self) -> Result<Box<dyn Frozen + '_>, SubjectError> {
        let mut pause = PAUSE_FIRST;
        for attempt in 1.. {
            let began = Instant::now();
            let frozen = match self.freeze_once() {
                Ok(frozen) => frozen,
                Err(error @ SandboxError::NotFrozen { .. }) if attempt < FREEZE_TRIES => {
                    *self.frozen.lock() += began.elapsed();
                    tracing::debug!(%error, attempt, sandbox = %self.sandbox.id(), "retrying the freeze");
                    self.sleep(pause)?;
                    pause = (pause * 2).min(PAUSE_LAST);
                    continue;
                }
                Err(error) => return Err(DaemonError::from(error).into()),
            };
            injected(Step::SandboxFrozen)?;
            return Ok(Box::new(Still { frozen, began, total: &self.frozen }));
        }
        Err(DaemonError::Panicked.into())
    }

    fn processes(&self) -> Result<Vec<u32>, SubjectError> {
        Ok(processes(self.sandbox.layout())?)
    }
}

impl InSandbox<'_> {
    /// Attempts once to freeze. A sandbox that has ended needs no freezing: `None`.
    fn freeze_once(&self) -> Result<Option<inlay_sandbox::Frozen>, SandboxError> {
        if self.sandbox.running().is_err() {
            return Ok(None);
        }
        match self.sandbox.monitor().freeze(FREEZE_WITHIN, FROZEN_MAX) {
            Ok(frozen) => Ok(Some(frozen)),
            // It has just ended: nothing changes any more.
            Err(SandboxError::NotRunning(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sleep(&self, pause: Duration) -> Result<(), CaptureError> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if self.cancel.is_cancelled() {
                return Err(CaptureError::Cancelled);
            }
            thread::sleep(CHECK_CANCEL);
        }
        Ok(())
    }
}

/// A sandbox that is frozen or has ended.
struct Still<'a> {
    frozen: Option<inlay_sandbox::Frozen>,
    began: Instant,
    /// How long this capture has kept the sandbox frozen, in total.
    total: &'a Mutex<Duration>,
}

impl Frozen for Still<'_> {
    fn until(&self) -> Option<Instant> {
        self.frozen.as_ref().map(|_| self.began + FROZEN_MAX)
    }

    fn thaw(self: Box<Self>) -> Result<Thawed, SubjectError> {
        let Self { frozen, began, total } = *self;
        let stood = match frozen.map(inlay_sandbox::Frozen::thaw).transpose()? {
            None => Stood::Throughout,
            Some(thawed) if thawed.held => Stood::Throughout,
            Some(thawed) if thawed.frozen >= FROZEN_MAX => Stood::TooLong,
            Some(_) => Stood::Interrupted,
        };
        let mut total = total.lock();
        *total += began.elapsed();
        Ok(Thawed { stood, frozen: *total })
    }
}
