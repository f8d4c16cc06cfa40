//! What a sandbox's directory is put together of, at this moment: its root, what is mounted in it, and
//! what is not ours.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, open};

use super::mounted::{MountFile, Place, files};
use super::{Sandbox, Service, injected};
use crate::capture::{
    Frozen, Graft, LeftOut, LeftOutWhy, Lower, Plan, Subject, SubjectError, Underneath, View,
};
use crate::daemon::api::StoreRef;
use crate::daemon::error::DaemonError;
use crate::host::Site;
use crate::in_root;
use crate::inject::Step;
use crate::mount::Owners;
use crate::sandbox::{self, SandboxError, processes};
use crate::snapshots::{empty_id, open_index};

/// How long a sandbox stands still at most. Then it goes on, and the snapshot fails.
const FROZEN_MAX: Duration = Duration::from_mins(1);
/// Where secrets are, in every sandbox.
const SECRETS: &str = "/run/secrets";

/// What is captured of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Its root, as a difference from its image.
    Root,
    /// What is seen at a path.
    Directory(PathBuf),
}

/// A sandbox as the subject of a capture.
pub(super) struct InSandbox<'a> {
    service: &'a Service,
    sandbox: Arc<Sandbox>,
    wanted: Wanted,
    site: Site<'a>,
    store: StoreRef,
    indexes: Mutex<HashMap<SnapshotId, Index>>,
}

/// A mount that the sandbox sees.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Visible {
    path: PathBuf,
    kind: String,
}

impl<'a> InSandbox<'a> {
    pub(super) fn new(
        service: &'a Service,
        sandbox: Arc<Sandbox>,
        wanted: Wanted,
        site: Site<'a>,
        store: StoreRef,
    ) -> Self {
        Self { service, sandbox, wanted, site, store, indexes: Mutex::default() }
    }

    /// One of our mounts, and its changes.
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

    /// All that the sandbox sees mounted, what was mounted last at a place only; and which of it is
    /// ours.
    fn mounts(&self) -> Result<(Vec<Visible>, Vec<MountFile>), DaemonError> {
        let Ok(first) = self.sandbox.running() else {
            let files = files(self.sandbox.layout())?.into_iter();
            let ours: Vec<MountFile> = files.filter(|file| file.place == Place::Mounted).collect();
            let kind = || "overlay".to_owned();
            let mut seen = vec![Visible { path: "/".into(), kind: kind() }];
            seen.extend(
                ours.iter().map(|file| Visible { path: file.path.to_path(), kind: kind() }),
            );
            return Ok((visible(seen), ours));
        };
        let path = PathBuf::from(format!("/proc/{}/mountinfo", first.pid));
        let table = fs::read(&path).map_err(DaemonError::io("read", &path))?;
        let live = self.service.live_mounts(&self.sandbox)?;
        Ok((visible(parse(&table)), live.into_iter().map(|(_, file)| file).collect()))
    }

    /// The directory, without links, as the sandbox sees it.
    fn real(&self, path: &Path) -> Result<PathBuf, DaemonError> {
        if let Ok(caller) = self.sandbox.caller() {
            return Ok(caller.locate(path));
        }
        let ours = files(self.sandbox.layout())?;
        let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        if ours.iter().any(|file| path.starts_with(file.path.to_path())) {
            return Ok(path);
        }
        let rootfs = self.sandbox.layout().rootfs();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let found =
            open(&rootfs, flags, Mode::empty()).and_then(|root| in_root::open(root, &path, flags));
        let real = found.ok().and_then(|dir| {
            let real = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
            Some(Path::new("/").join(real.strip_prefix(&rootfs).ok()?))
        });
        Ok(real.unwrap_or(path))
    }

    fn planned(&self) -> Result<Plan, DaemonError> {
        let (seen, ours) = self.mounts()?;
        let at = match &self.wanted {
            Wanted::Root => PathBuf::from("/"),
            Wanted::Directory(path) => self.real(path)?,
        };
        let ours_at = |path: &Path| ours.iter().find(|file| file.path.to_path() == path);
        let covering = seen.iter().filter(|mount| at.starts_with(&mount.path));
        let covering = covering.max_by_key(|mount| mount.path.components().count());
        let (view, inside) = match covering {
            Some(mount) if mount.path == Path::new("/") => (self.root_view()?, Path::new("/")),
            Some(mount) => match ours_at(&mount.path) {
                Some(file) => (self.mount_view(file)?, mount.path.as_path()),
                None => {
                    return Err(DaemonError::NotOurs { path: at, kind: mount.kind.clone() });
                }
            },
            None => (self.root_view()?, Path::new("/")),
        };
        let path = at.strip_prefix(inside).unwrap_or(Path::new("")).to_owned();
        let mut plan = Plan { view, path, grafts: Vec::new(), left_out: Vec::new() };
        let mut others: Vec<&Path> = Vec::new();
        for mount in seen.iter().filter(|mount| mount.path != at && mount.path.starts_with(&at)) {
            // What is mounted on something that is left out is nowhere in the snapshot.
            if others.iter().any(|other| mount.path.starts_with(other)) {
                continue;
            }
            let relative = mount.path.strip_prefix(&at).unwrap_or(&mount.path).to_owned();
            let why = match (ours_at(&mount.path), &self.wanted) {
                (Some(file), Wanted::Directory(_)) => {
                    let view = self.mount_view(file)?;
                    plan.grafts.push(Graft { at: relative, view, path: PathBuf::new() });
                    continue;
                }
                (Some(_), Wanted::Root) => LeftOutWhy::LiveMount,
                (None, _) if mount.path == Path::new(SECRETS) => LeftOutWhy::Secret,
                (None, _) => LeftOutWhy::FileSystem(mount.kind.clone()),
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
        let frozen = if self.sandbox.running().is_ok() {
            match self.sandbox.monitor().freeze(FROZEN_MAX) {
                Ok(frozen) => Some(frozen),
                // It has just ended: nothing changes any more.
                Err(SandboxError::NotRunning(_)) => None,
                Err(error) => return Err(error.into()),
            }
        } else {
            None
        };
        injected(Step::SandboxFrozen)?;
        Ok(Box::new(Still(frozen)))
    }

    fn processes(&self) -> Result<Vec<u32>, SubjectError> {
        Ok(processes(self.sandbox.layout())?)
    }
}

/// A sandbox that stands still, or has ended.
struct Still(Option<sandbox::Frozen>);

impl Frozen for Still {
    fn thaw(self: Box<Self>) -> Result<(), SubjectError> {
        let Some(frozen) = self.0 else { return Ok(()) };
        if frozen.thaw()?.held {
            return Ok(());
        }
        Err("the sandbox did not stand still until everything was looked at; try again".into())
    }
}

/// Mounts in the order in which they were made, without those that later ones hide.
fn visible(mounts: Vec<Visible>) -> Vec<Visible> {
    let mut seen: Vec<Visible> = Vec::new();
    for mount in mounts {
        seen.retain(|earlier| !earlier.path.starts_with(&mount.path));
        seen.push(mount);
    }
    seen
}

/// The lines of proc(5)'s `mountinfo`.
fn parse(table: &[u8]) -> Vec<Visible> {
    let lines = table.split(|byte| *byte == b'\n');
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let path = sandbox::unescape(fields.nth(4)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Visible { path, kind: String::from_utf8_lossy(kind).into_owned() })
    };
    lines.filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_later_mounts_hide_is_not_seen() {
        let table = b"21 1 0:5 / / rw - overlay inlay rw\n\
            22 21 0:6 / /proc rw shared:1 - proc proc rw\n\
            23 21 0:7 / /a rw - tmpfs tmpfs rw\n\
            24 23 0:8 / /a/b\\040c rw - tmpfs tmpfs rw\n\
            25 21 0:9 / /a rw - overlay inlay rw\n\
            26 25 0:9 / /a/d rw - ext4 /dev/x rw\n";
        let seen = visible(parse(table));
        let seen: Vec<_> = seen.iter().map(|at| (at.path.to_str().unwrap(), &*at.kind)).collect();
        let wanted = [("/", "overlay"), ("/proc", "proc"), ("/a", "overlay"), ("/a/d", "ext4")];
        assert_eq!(seen, wanted);
        assert_eq!(parse(table)[3].path, Path::new("/a/b c"));
        assert!(parse(b"damaged\n1 2 3").is_empty());
    }
}
