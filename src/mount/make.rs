//! How a mount is made: where its changes go, the layers with the owners that they are to show, the
//! overlay above them, the record, and only then what users see.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use inlay_store::ids::{Digest, SnapshotId};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::MountError;
use super::ids::{Owners, Setuid};
use super::overlay::{self, Layers};
use super::path::Owner;
use super::record::{MountRecord, PathText, View};
use super::registry::make_private_dirs;
use super::table::{Claim, Mounts, SCRATCH, Wanted};
use super::target::Umount;
use super::upper::{Keep, Upper, UpperPlace};
use crate::inject::{self, Step};

/// The layers of a mount as it is to show them.
pub(super) struct Shown {
    /// Where each is seen.
    pub(super) dirs: Vec<PathBuf>,
    /// Views that are mounted nowhere and that `dirs` lead to, if owners are mapped.
    trees: Vec<OwnedFd>,
    owners: Option<Owners>,
}

impl Shown {
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

    /// The layers with the owners that they are to show.
    pub(super) fn shown(&self, claim: &Claim, wanted: &Wanted) -> Result<Shown, MountError> {
        let top = &wanted.top.dir;
        let mut root = Owner::ROOT;
        if wanted.chown.is_some() {
            let meta = fs::metadata(top).map_err(MountError::io("look at", top))?;
            root = Owner { uid: meta.uid(), gid: meta.gid() };
        }
        let space = claim.target.space();
        if let Some(owner) = wanted.chown
            && space.outside(owner).is_none()
        {
            return Err(MountError::NoSuchOwner(owner));
        }
        let dirs = wanted.layers().map(|layer| layer.dir.clone());
        let Some(owners) = space.owners(root, wanted.chown) else {
            return Ok(Shown { dirs: dirs.collect(), trees: Vec::new(), owners: None });
        };
        let trees: Vec<_> =
            dirs.map(|dir| self.spaces.view(&dir, &owners)).collect::<Result<_, _>>()?;
        let path = |tree: &OwnedFd| format!("/proc/self/fd/{}", tree.as_raw_fd()).into();
        Ok(Shown { dirs: trees.iter().map(path).collect(), trees, owners: Some(owners) })
    }

    /// Makes the mount, records it, and only then lets it be seen.
    pub(super) fn attach(
        &self,
        claim: &Claim,
        wanted: &Wanted,
        mut shown: Shown,
        upper: Option<&Upper>,
    ) -> Result<MountRecord, MountError> {
        let mountpoint = claim.target.path();
        let tree = match upper {
            None => shown.trees.pop().map_or_else(|| view(&wanted.top.dir), Ok)?,
            Some(upper) => {
                let setuid = shown.setuid();
                let lower = shown.dirs;
                let (upper, work) = (upper.upper(), upper.work());
                overlay::tree(&Layers { lower, setuid, upper, work }, mountpoint)?
            }
        };
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
            key: wanted.key.clone(),
            standing: wanted.standing,
            made: claim.target.made().iter().map(|dir| PathText::from(&**dir)).collect(),
        };
        let injected = |step| inject::point(step).map_err(MountError::io("mount on", mountpoint));
        let attached = injected(Step::UpperPrepared)
            .and_then(|()| self.registry.add(&record))
            .and_then(|()| injected(Step::MountRecorded))
            .and_then(|()| claim.target.attach(&tree));
        if let Err(error) = attached {
            self.registry.remove(&record)?;
            return Err(error);
        }
        if let Err(error) = injected(Step::MountAttached) {
            record.seen.unmount(mountpoint, Umount::Lazily)?;
            self.registry.remove(&record)?;
            return Err(error);
        }
        Ok(record)
    }
}

/// A view of the directory `dir` that is mounted nowhere yet.
pub(super) fn view(dir: &Path) -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, dir, flags).map_err(MountError::io("take a view of", dir))
}
