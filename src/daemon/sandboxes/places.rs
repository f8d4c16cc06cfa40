//! Locates the mounts of a sandbox, now or as of its end. Directories above a mount may have been
//! renamed since it was created.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use inlay_base::mountinfo::{self, MountLine};
use inlay_mounts::{Anchor, Claim, Depth, MountError, Process};
use serde::{Deserialize, Serialize};

use super::mounted::{MountFile, MountFileState, files};
use super::{Sandbox, Service};
use crate::daemon::error::DaemonError;

/// Mount id of the root of a sandbox that has ended.
const ROOT: u64 = 0;
/// Maximum nesting depth of mounts.
const DEPTH_MAX: usize = 256;

/// The directory something is mounted on, in a form that can be found again after the sandbox ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct On {
    /// Number of the mount that contains the directory; `None`: the sandbox's root.
    pub(super) mount: Option<u32>,
    /// Location of the directory in the changes of that mount.
    pub(super) anchor: Anchor,
}

/// A mount visible in the sandbox, now or at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visible {
    pub(super) path: PathBuf,
    /// File system type.
    pub(super) kind: String,
    pub(super) what: What,
}

/// Kind of a visible mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The sandbox's root.
    Root,
    /// A live mount.
    Live(Box<MountFile>),
    /// A mount that is not ours.
    Other,
}

impl Service {
    /// Returns the location of the claimed directory in a form that survives the sandbox's end.
    /// `None` if it is on a file system that ends with the sandbox, or on a read-only one.
    pub(super) fn on(&self, sandbox: &Sandbox, claim: &Claim) -> Result<Option<On>, DaemonError> {
        let found = claim.target().found();
        // Something else is mounted there already.
        if found.at == Depth::Root {
            return Ok(None);
        }
        let (mount, upper, at) = if found.mount == claim.target().root_mount() {
            (None, sandbox.layout().rw().join("upper"), PathBuf::from("/"))
        } else {
            let live = self.live_mounts(sandbox)?;
            let around = live.into_iter().find(|(record, _)| record.seen.number() == found.mount);
            let Some((record, file)) = around else { return Ok(None) };
            let Some(upper) = file.upper(sandbox.layout()) else { return Ok(None) };
            (Some(file.number), upper, record.mountpoint.to_path())
        };
        let moved = || MountError::Moved(claim.path().to_owned());
        let path = claim.path().strip_prefix(&at).map_err(|_| moved())?;
        let anchor = match Anchor::of(claim.target().dir(), &upper, path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(moved().into());
            }
            other => other.map_err(DaemonError::io("remember", claim.path()))?,
        };
        if !claim.is_there() {
            return Err(moved().into());
        }
        Ok(anchor.map(|anchor| On { mount, anchor }))
    }

    /// Returns all mounts visible in the sandbox, now or at its end.
    pub(super) fn visible(&self, sandbox: &Sandbox) -> Result<Vec<Visible>, DaemonError> {
        match sandbox.process()? {
            Some(first) => self.visible_now(sandbox, &first),
            None => visible_at_the_end(sandbox),
        }
    }

    fn visible_now(&self, sandbox: &Sandbox, first: &Process) -> Result<Vec<Visible>, DaemonError> {
        let path = PathBuf::from(format!("/proc/{}/mountinfo", first.id().pid));
        let table = fs::read(&path);
        if !first.is_alive() {
            return visible_at_the_end(sandbox);
        }
        let table = table.map_err(DaemonError::io("read", &path))?;
        let mut ours = HashMap::new();
        for (record, file) in self.live_mounts(sandbox)? {
            if let Some(now) = record.seen.now()? {
                ours.insert(now.id, file);
            }
        }
        let lines = mountinfo::parse(&table);
        let root = lines.iter().find(|line| !lines.iter().any(|other| other.id == line.parent));
        Ok(visible_mounts(root.map(|line| line.id), mountinfo::visible(lines.clone()), &mut ours))
    }
}

/// Returns the mounts visible when the sandbox ended.
fn visible_at_the_end(sandbox: &Sandbox) -> Result<Vec<Visible>, DaemonError> {
    let files = files(sandbox.layout())?;
    let mounted: HashMap<u32, &MountFile> = files
        .iter()
        .filter(|file| file.place == MountFileState::Mounted)
        .map(|file| (file.number, file))
        .collect();
    let line = |id, parent, path: &Path| MountLine {
        id,
        parent,
        device: (0, 0),
        root: "/".into(),
        path: path.to_owned(),
        kind: "overlay".to_owned(),
        super_options: String::new(),
    };
    let mut lines = vec![line(ROOT, u64::MAX, "/".as_ref())];
    let mut ours = HashMap::new();
    for file in files.iter().filter(|file| file.place == MountFileState::Mounted) {
        let Some(path) = place_at_the_end(sandbox, file, &mounted)? else { continue };
        let parent = if let Some(On { mount, .. }) = &file.on {
            mount.map_or(ROOT, u64::from)
        } else {
            // No location recorded: assume the innermost mount around its path.
            let around = lines.iter().filter(|line| path.starts_with(&line.path));
            let around = around.max_by_key(|line| line.path.components().count());
            around.map_or(ROOT, |line| line.id)
        };
        lines.push(line(file.number.into(), parent, &path));
        ours.insert(u64::from(file.number), MountFile { path: (&*path).into(), ..file.clone() });
    }
    Ok(visible_mounts(Some(ROOT), mountinfo::visible(lines), &mut ours))
}

/// Returns the path of a mount when its sandbox ended; `None` if the directory it was on is gone.
fn place_at_the_end(
    sandbox: &Sandbox,
    file: &MountFile,
    mounted: &HashMap<u32, &MountFile>,
) -> Result<Option<PathBuf>, DaemonError> {
    let mut parts = Vec::new();
    let mut at = file;
    for _ in 0..DEPTH_MAX {
        let Some(on) = &at.on else {
            parts.push(at.path.to_path());
            return Ok(Some(parts.iter().rev().collect()));
        };
        let (around, upper) = match on.mount {
            None => (None, Some(sandbox.layout().rw().join("upper"))),
            Some(number) => {
                let around = mounted.get(&number).copied();
                (around, around.and_then(|around| around.upper(sandbox.layout())))
            }
        };
        let Some(upper) = upper else { return Ok(None) };
        let found =
            on.anchor.find(&upper).map_err(DaemonError::io("look for a mount in", &upper))?;
        let Some(path) = found else { return Ok(None) };
        parts.push(path);
        let Some(around) = around else {
            parts.push("/".into());
            return Ok(Some(parts.iter().rev().collect()));
        };
        at = around;
    }
    let why =
        format!("the records of its mounts nest more than {DEPTH_MAX} of them in one another");
    Err(DaemonError::DamagedSandbox { id: sandbox.id().clone(), why })
}

fn visible_mounts(
    root: Option<u64>,
    lines: Vec<MountLine>,
    ours: &mut HashMap<u64, MountFile>,
) -> Vec<Visible> {
    let shown = lines.into_iter().map(|MountLine { id, path, kind, .. }| {
        let what = match ours.remove(&id) {
            Some(file) => What::Live(Box::new(file)),
            None if root == Some(id) => What::Root,
            None => What::Other,
        };
        Visible { path, kind, what }
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::damaged::unknown;
    use super::super::mounted::tests::file;
    use super::*;
    use inlay_sandbox::Layout;

    #[test]
    fn a_sandbox_that_ended_has_seen_the_mounts_that_were_made_and_not_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path(), &"sb-0123456789ab".parse().unwrap());
        fs::create_dir_all(layout.mounts()).unwrap();
        let places = [
            MountFileState::Making,
            MountFileState::Mounted,
            MountFileState::Kept,
            MountFileState::Discarded,
        ];
        for (number, place) in (1..).zip(places) {
            MountFile { place, ..file(number) }.write(&layout).unwrap();
        }
        let sandbox = Sandbox::new(layout.clone(), unknown(layout.id()));
        let seen = visible_at_the_end(&sandbox).unwrap();
        let paths: Vec<_> = seen.iter().map(|one| one.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/", "/2"]);
    }

    #[test]
    fn mounts_that_are_said_to_be_on_each_other_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path(), &"sb-0123456789ab".parse().unwrap());
        fs::create_dir_all(layout.mounts()).unwrap();
        for (number, on) in [(1, 2), (2, 1)] {
            let upper = layout.mount_upper(on).join("upper");
            fs::create_dir_all(upper.join("at")).unwrap();
            let at = fs::File::open(upper.join("at")).unwrap();
            let anchor = Anchor::of(at.as_fd(), &upper, "at".as_ref()).unwrap().unwrap();
            let on = Some(On { mount: Some(on), anchor });
            MountFile { on, ..file(number) }.write(&layout).unwrap();
        }
        let sandbox = Sandbox::new(layout.clone(), unknown(layout.id()));
        let error = visible_at_the_end(&sandbox).unwrap_err();
        assert!(matches!(error, DaemonError::DamagedSandbox { .. }), "{error}");
    }
}
