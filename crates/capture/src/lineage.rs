//! Identifies the captured directory independently of its current name: determines which earlier
//! capture to build on and the parent of its snapshot.
//!
//! A changed directory is identified by its inode in the upper directory, an unchanged one by its
//! inode in the lower snapshot. So neither a mount that reuses the number of an earlier one nor a
//! directory that takes the name of a renamed one is mistaken for it.

use std::os::unix::ffi::OsStrExt;

use inlay_store::format::InodeIdx;
use inlay_store::ids::Kind;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::error::CaptureError;
use super::merged_view::{Mounted, Picture};
use super::scan::UpperDir;
use super::subject::{Plan, View};

/// The identity of a directory of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ViewDirectory {
    /// The snapshot kind and the identity of the view.
    view: Vec<u8>,
    /// The identity of the directory in the upper directory.
    upper: Option<Vec<u8>>,
    /// The inode of the directory in the lower snapshot.
    lower: Option<InodeIdx>,
}

impl ViewDirectory {
    /// Identifies the captured directory of `plan`.
    pub(super) fn find(kind: Kind, plan: &Plan) -> Result<Self, CaptureError> {
        let (upper, lower) = Mounted::locate(&plan.view, &plan.path)?;
        Self::of_view(kind, &plan.view, upper.as_ref(), lower)
    }

    /// Identifies the captured directory of `picture`.
    pub(super) fn of(kind: Kind, picture: &Picture) -> Result<Self, CaptureError> {
        let own = picture.mounts.first();
        let upper = own.and_then(|own| Some(&own.upper.as_ref()?.dir));
        Self::of_view(kind, &picture.plan.view, upper, own.and_then(|own| own.lower))
    }

    fn of_view(
        kind: Kind,
        view: &View,
        upper: Option<&UpperDir>,
        lower: Option<InodeIdx>,
    ) -> Result<Self, CaptureError> {
        let mut name = kind.prefix().as_bytes().to_vec();
        name.push(0);
        if let Some(root) = &view.upper {
            name.extend_from_slice(root.as_os_str().as_bytes());
            name.push(0);
            let failed = |errno: rustix::io::Errno| CaptureError::Io {
                path: root.clone(),
                source: errno.into(),
            };
            name.extend(identity(&UpperDir::open(root).map_err(failed)?)?);
        }
        if let Some(lower) = &view.lower {
            name.extend_from_slice(lower.id.to_string().as_bytes());
        }
        let upper = upper.map(identity).transpose()?;
        Ok(Self { view: name, upper, lower })
    }

    /// Reports whether it is the same directory as `earlier`, possibly changed since.
    pub(super) fn goes_on_from(&self, earlier: &Self) -> bool {
        self.view == earlier.view
            && match (&self.upper, &earlier.upper) {
                (Some(now), Some(before)) => now == before,
                (_, None) => self.lower == earlier.lower,
                (None, Some(_)) => false,
            }
    }

    /// Returns the cache keys of the directory, best first.
    pub(super) fn names(&self) -> impl Iterator<Item = Vec<u8>> {
        let upper = self.upper.as_ref().map(|upper| [&self.view[..], b"\0upper\0", upper].concat());
        let lower = self
            .lower
            .map(|InodeIdx(inode)| [&self.view[..], b"\0lower\0", &inode.to_le_bytes()].concat());
        let none = (upper.is_none() && lower.is_none()).then(|| self.view.clone());
        upper.into_iter().chain(lower).chain(none)
    }
}

/// Returns the identity of a directory on this host. It includes the birth time, so that a later
/// directory with the same inode number differs.
fn identity(dir: &UpperDir) -> Result<Vec<u8>, CaptureError> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = statx(dir.fd(), "", AtFlags::EMPTY_PATH, wanted).map_err(|errno| {
        CaptureError::Io { path: "the captured directory".into(), source: errno.into() }
    })?;
    let mut out = Vec::new();
    for number in [stat.stx_dev_major, stat.stx_dev_minor, stat.stx_btime.tv_nsec] {
        out.extend(number.to_le_bytes());
    }
    out.extend(stat.stx_ino.to_le_bytes());
    out.extend(stat.stx_btime.tv_sec.to_le_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn place(upper: &Path, path: &str) -> ViewDirectory {
        let view = View { lower: None, upper: Some(upper.to_owned()), owners: None };
        let plan = Plan { view, path: path.into(), grafts: Vec::new(), left_out: Vec::new() };
        ViewDirectory::find(Kind::Directory, &plan).unwrap()
    }

    fn name(place: &ViewDirectory) -> Vec<u8> {
        place.names().next().unwrap()
    }

    #[test]
    fn a_directory_stays_itself_and_no_other_becomes_it() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("1/upper");
        fs::create_dir_all(upper.join("a")).unwrap();
        fs::create_dir_all(upper.join("b")).unwrap();
        let (a, b) = (place(&upper, "a"), place(&upper, "b"));
        assert!(a.goes_on_from(&a) && !a.goes_on_from(&b));
        // Swap the names.
        fs::rename(upper.join("a"), upper.join("c")).unwrap();
        fs::rename(upper.join("b"), upper.join("a")).unwrap();
        assert_eq!(name(&place(&upper, "c")), name(&a));
        assert_eq!(name(&place(&upper, "a")), name(&b));
        // Another upper directory at the same path.
        let root = place(&upper, "");
        fs::remove_dir_all(&upper).unwrap();
        fs::create_dir_all(&upper).unwrap();
        assert_ne!(name(&place(&upper, "")), name(&root));
    }

    #[test]
    fn the_first_change_to_a_directory_does_not_make_another_of_it() {
        let before =
            ViewDirectory { view: b"view".to_vec(), upper: None, lower: Some(InodeIdx(7)) };
        let after = ViewDirectory { upper: Some(b"u".to_vec()), ..before.clone() };
        let other = ViewDirectory { lower: Some(InodeIdx(8)), ..before.clone() };
        assert!(after.goes_on_from(&before) && !other.goes_on_from(&before));
        assert!(!before.goes_on_from(&after));
        // What was cached about it is found again.
        assert!(after.names().any(|name| Some(name) == before.names().next()));
    }
}
