//! Creates a mount: the upper directory, the layers with mapped owners, the overlay above them, and
//! the record. Only then does it become visible to users.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use inlay_base::inject::{self, Step};
use inlay_base::record::Unknown;
use inlay_store::ids::{Digest, SnapshotId};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::MountError;
use super::flags::{self, MountFlags};
use super::ids::{Owners, Setuid};
use super::kernel;
use super::mount_id::Umount;
use super::overlay::{self, Layers};
use super::record::{MountRecord, PathText, View};
use super::registry::make_private_dirs;
use super::table::{Claim, Mounts, SCRATCH};
use super::upper::{Keep, Upper, UpperPlace, WantedView, throw_away};
use super::wanted::Wanted;

/// The lower layers of a mount, with owners mapped.
pub(super) struct MappedLayers {
    /// The path of each layer.
    pub(super) dirs: Vec<PathBuf>,
    /// The detached mounts that `dirs` refer to, if the kernel maps owners.
    trees: Vec<OwnedFd>,
    owners: Option<Owners>,
}

impl MappedLayers {
    fn setuid(&self) -> Setuid {
        self.owners.as_ref().map_or(Setuid::Kept, |owners| owners.setuid)
    }
}

impl Mounts {
    pub(super) fn place(
        &self,
        wanted: &UpperPlace,
        snapshot: SnapshotId,
        mountpoint: &Path,
    ) -> Result<(PathBuf, Keep), MountError> {
        let uppers = self.state.join("upper");
        Ok(match wanted {
            UpperPlace::Scratch => {
                make_private_dirs(&uppers)?;
                let dir = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&uppers);
                let dir = dir.map_err(MountError::io("make a directory in", &uppers))?;
                (dir.keep(), Keep::Scratch)
            }
            UpperPlace::Beside => {
                let mut name = Digest::of(mountpoint.as_os_str().as_encoded_bytes()).to_hex();
                name.truncate(16);
                (uppers.join(format!("{name}-{}", snapshot.index)), Keep::Kept)
            }
            UpperPlace::Kept(path) => {
                let path = path.to_path();
                let absolute = std::path::absolute(&path).map_err(MountError::io("find", &path))?;
                (absolute, Keep::Kept)
            }
        })
    }

    /// Prepares the upper directory of a writable mount. If that fails, a scratch directory is
    /// removed again.
    pub(super) fn prepare_upper(
        &self,
        claim: &Claim,
        wanted: &Wanted,
        shown: &MappedLayers,
    ) -> Result<Option<Upper>, MountError> {
        let (WantedView::Writable(place), Some(top)) = (&wanted.view, shown.dirs.first()) else {
            return Ok(None);
        };
        let (path, keep) = self.place(place, wanted.snapshot, claim.target.path())?;
        let prepared = Upper::prepare(&path, keep, wanted.snapshot, top);
        if prepared.is_err()
            && keep == Keep::Scratch
            && let Err(error) = throw_away(&path)
        {
            tracing::warn!(%error, "the directory of a mount that failed stays behind");
        }
        prepared.map(Some)
    }

    /// Reports whether `record` describes the mount that this request would create there.
    pub fn is_as_wanted(
        &self,
        record: &MountRecord,
        snapshot: SnapshotId,
        view: &WantedView,
        flags: &MountFlags,
    ) -> bool {
        let same_view = match (&record.view, view) {
            (View::ReadOnly, WantedView::ReadOnly) => true,
            (View::Writable { keep, .. }, WantedView::Writable(UpperPlace::Scratch)) => {
                *keep == Keep::Scratch
            }
            (View::Writable { upper, keep: Keep::Kept }, WantedView::Writable(place)) => {
                let wanted = self.place(place, snapshot, &record.mountpoint.to_path());
                let real = |path: &Path| fs::canonicalize(path).ok();
                let found = real(&upper.to_path());
                found.is_some() && wanted.is_ok_and(|(wanted, _)| real(&wanted) == found)
            }
            _ => false,
        };
        same_view && record.snapshot == snapshot && record.flags == *flags
    }

    /// Prepares the layers with the owners they are to show.
    pub(super) fn mapped_layers(
        &self,
        claim: &Claim,
        wanted: &Wanted,
    ) -> Result<MappedLayers, MountError> {
        let space = claim.target.space();
        if let Some(owner) = wanted.chown
            && space.outside(owner).is_none()
        {
            return Err(MountError::NoSuchOwner(owner));
        }
        let dirs = wanted.layers().map(|layer| layer.dir.clone());
        let owners = space.owners(wanted.alias);
        let setuid = owners.as_ref().map_or(Setuid::Kept, |owners| owners.setuid);
        let Some(mapped) = space.mapped(setuid) else {
            return Ok(MappedLayers { dirs: dirs.collect(), trees: Vec::new(), owners });
        };
        let trees: Vec<_> =
            dirs.map(|dir| self.spaces.view(&dir, &mapped)).collect::<Result<_, _>>()?;
        let path = |tree: &OwnedFd| format!("/proc/self/fd/{}", tree.as_raw_fd()).into();
        Ok(MappedLayers { dirs: trees.iter().map(path).collect(), trees, owners })
    }

    /// Creates the mount, records it, and only then attaches it.
    pub(super) fn attach(
        &self,
        claim: &Claim,
        wanted: &Wanted,
        mut shown: MappedLayers,
        upper: Option<&Upper>,
    ) -> Result<MountRecord, MountError> {
        let mountpoint = claim.target.path();
        let tree = match upper {
            None => match shown.trees.pop() {
                Some(tree) => tree,
                None => plain_view(&wanted.top.dir, shown.setuid())?,
            },
            Some(upper) => {
                let setuid = shown.setuid();
                let lower = shown.dirs;
                let (upper, work) = (upper.upper(), upper.work());
                let longest_path = wanted.longest_path;
                overlay::tree(&Layers { lower, setuid, longest_path, upper, work }, mountpoint)?
            }
        };
        flags::set(&tree, &wanted.flags)
            .map_err(MountError::io("set the options of", mountpoint))?;
        let record = MountRecord {
            mountpoint: mountpoint.into(),
            snapshot: wanted.snapshot,
            slots: wanted.layers().map(|layer| layer.slot).collect(),
            session: self.session.clone(),
            seen: claim.target.seen(&tree)?,
            view: match upper {
                None => View::ReadOnly,
                Some(upper) => {
                    View::Writable { upper: PathText::from(upper.base()), keep: upper.keep() }
                }
            },
            owner: wanted.owner.clone(),
            owners: shown.owners,
            flags: wanted.flags.clone(),
            file: wanted.file,
            key: wanted.key.clone(),
            standing: wanted.standing,
            made: claim.target.made().iter().map(|dir| PathText::from(&**dir)).collect(),
            unknown: Unknown::default(),
        };
        let injected = |step| inject::point(step).map_err(MountError::io("mount on", mountpoint));
        let attached = injected(Step::UpperPrepared)
            .and_then(|()| self.registry.add(&record))
            .and_then(|()| injected(Step::MountRecorded))
            .and_then(|()| claim.target.attach(&tree));
        match attached.and_then(|()| injected(Step::MountAttached)) {
            Ok(()) => Ok(record),
            Err(error) => {
                self.unmake(&record);
                Err(error)
            }
        }
    }

    /// Rolls back a failed mount, then removes its record. If it can't be unmounted, its record is
    /// kept, for the next daemon to clean up.
    pub(super) fn unmake(&self, record: &MountRecord) {
        let mountpoint = record.mountpoint.to_path();
        let gone = match record.seen.unmount(&mountpoint, Umount::Lazily) {
            // It ends with its namespace.
            Err(MountError::NobodyInside(_)) => Ok(()),
            other => other,
        };
        if let Err(error) = gone.and_then(|()| self.registry.remove(record)) {
            tracing::warn!(%error, "can't undo a failed mount");
        }
    }
}

/// Clones the mount at the directory `dir` as a detached mount.
pub(super) fn view(dir: &Path) -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, dir, flags).map_err(MountError::io("take a view of", dir))
}

/// Like [`view`], with owners as they are served.
fn plain_view(dir: &Path, setuid: Setuid) -> Result<OwnedFd, MountError> {
    let tree = view(dir)?;
    if setuid == Setuid::Ignored {
        kernel::ignore_setuid(tree.as_fd())
            .map_err(MountError::io("ignore setuid bits of", dir))?;
    }
    Ok(tree)
}
