//! Scans everything a capture is built from: for each mount of the plan, its captured directory in
//! the upper directory and in the lower snapshot.

use std::path::{Path, PathBuf};

use inlay_store::format::{Device, FileKind, FormatError, InodeIdx};
use inlay_store::pack::Adopter;

use super::error::CaptureError;
use super::layer::{Buffers, Extra};
use super::mount_points::Point;
use super::scan::{Scan, Scanner, UpperDir};
use super::stat::Stat;
use super::subject::{Lower, Plan, View};

/// A mount of the plan.
pub(super) struct Mounted {
    pub(super) view: View,
    /// Its mount point, relative to the captured directory.
    pub(super) at: PathBuf,
    /// The directory of the view that is captured.
    path: PathBuf,
    /// That directory in the upper directory, if it exists there.
    pub(super) upper: Option<UpperRoot>,
    /// That directory in the lower snapshot, if it exists there.
    pub(super) lower: Option<InodeIdx>,
}

/// A captured directory in an upper directory.
pub(super) struct UpperRoot {
    pub(super) dir: UpperDir,
    pub(super) stat: Stat,
    pub(super) extra: Option<Extra>,
    pub(super) scan: Scan,
    /// A directory on the same filesystem that no overlay shows.
    pub(super) beside: PathBuf,
}

/// The result of a scan of all mounts.
pub(super) struct Picture {
    pub(super) plan: Plan,
    pub(super) points: Point,
    /// The plan's own view first, then its grafts in order.
    pub(super) mounts: Vec<Mounted>,
}

impl Picture {
    /// Scans everything that `plan` names. Reuses what `before` has of unchanged objects.
    pub(super) fn scan(
        plan: Plan,
        scanner: &Scanner<'_>,
        before: Option<&Self>,
    ) -> Result<Self, CaptureError> {
        let own = (&plan.view, Path::new(""), plan.path.as_path());
        let grafts = plan.grafts.iter().map(|g| (&g.view, g.at.as_path(), g.path.as_path()));
        let mut mounts = Vec::new();
        for (view, at, path) in std::iter::once(own).chain(grafts) {
            let earlier = before.and_then(|picture| picture.same(view, path));
            mounts.push(Mounted::scan(view, at, path, scanner, earlier)?);
        }
        Ok(Self { points: Point::of(&plan), plan, mounts })
    }

    /// Returns the lower snapshots.
    pub(super) fn lowers(&self) -> impl Iterator<Item = &Lower> {
        self.mounts.iter().filter_map(|mounted| mounted.view.lower.as_ref())
    }

    fn same(&self, view: &View, path: &Path) -> Option<&Scan> {
        let mounted = self.mounts.iter().find(|m| m.view.upper == view.upper && m.path == path)?;
        Some(&mounted.upper.as_ref()?.scan)
    }
}

impl Mounted {
    /// Locates the directory `path` of `view` in its upper directory and in the lower snapshot.
    pub(super) fn locate(
        view: &View,
        path: &Path,
    ) -> Result<(Option<UpperDir>, Option<InodeIdx>), CaptureError> {
        let mut mounted = Self::new(view, Path::new(""), path);
        let found = mounted.resolve()?;
        Ok((found.map(|(dir, ..)| dir), mounted.lower))
    }

    fn new(view: &View, at: &Path, path: &Path) -> Self {
        Self {
            view: view.clone(),
            at: at.to_owned(),
            path: path.to_owned(),
            upper: None,
            lower: view.lower.as_ref().map(|_| InodeIdx::ROOT),
        }
    }

    fn scan(
        view: &View,
        at: &Path,
        path: &Path,
        scanner: &Scanner<'_>,
        before: Option<&Scan>,
    ) -> Result<Self, CaptureError> {
        let mut mounted = Self::new(view, at, path);
        let found = mounted.resolve()?;
        if let Some((dir, stat, extra)) = found {
            let scan = scanner.scan(&dir, at, before)?;
            let beside = view.upper.as_deref().and_then(Path::parent).unwrap_or(path).to_owned();
            mounted.upper = Some(UpperRoot { dir, stat, extra, scan, beside });
        }
        if mounted.upper.is_none() && mounted.lower.is_none() && mounted.view.lower.is_some() {
            return Err(mounted.no_directory("does not exist"));
        }
        Ok(mounted)
    }

    /// Returns an adopter of files of the lower snapshot.
    pub(super) fn adopter(&self) -> Option<Adopter> {
        self.view.lower.as_ref().map(|lower| Adopter::new(lower.index.clone()))
    }

    fn no_directory(&self, what: &'static str) -> CaptureError {
        CaptureError::NoDirectory { path: Path::new("/").join(&self.path), what }
    }

    /// Descends to the captured directory in both layers, as overlayfs does.
    fn resolve(&mut self) -> Result<Option<(UpperDir, Stat, Option<Extra>)>, CaptureError> {
        let mut buffers = Buffers::new();
        let mut upper = match &self.view.upper {
            None => None,
            Some(path) => {
                let dir = UpperDir::open(path).map_err(|errno| CaptureError::Io {
                    path: path.clone(),
                    source: errno.into(),
                })?;
                let (stat, extra) = self.object(&dir, c"", &mut buffers)?;
                Some((dir, stat, extra))
            }
        };
        for name in &self.path.clone() {
            let bytes = name.as_encoded_bytes();
            let c_name = std::ffi::CString::new(bytes)
                .map_err(|_| self.no_directory("has a zero byte in its name"))?;
            let found = match &upper {
                None => None,
                Some((dir, ..)) => match Stat::of(dir.fd(), c_name.as_c_str()) {
                    Err(rustix::io::Errno::NOENT) => None,
                    _ => Some(self.object(dir, &c_name, &mut buffers)?),
                },
            };
            let gone = found.as_ref().is_some_and(|(stat, extra)| {
                stat.is_whiteout() || extra.as_ref().is_some_and(|extra| extra.whiteout)
            });
            if gone {
                return Err(self.no_directory("does not exist"));
            }
            if found.as_ref().is_some_and(|(stat, _)| !stat.is_dir()) {
                return Err(self.no_directory("is no directory"));
            }
            let extra = found.as_ref().and_then(|(_, extra)| extra.as_ref());
            let lower = self.below(self.lower, bytes, extra, &self.at.clone())?;
            self.lower = match lower {
                Some((inode, FileKind::Directory)) => Some(inode),
                Some(_) if found.is_none() => return Err(self.no_directory("is no directory")),
                _ => None,
            };
            upper = match (upper, found) {
                (Some((dir, ..)), Some((stat, extra))) => {
                    let fd = dir.open_dir(bytes).map_err(|errno| CaptureError::Read {
                        path: self.at.clone(),
                        what: "open",
                        source: errno.into(),
                    })?;
                    Some((UpperDir::new(fd), stat, extra))
                }
                _ => None,
            };
            if upper.is_none() && self.lower.is_none() {
                return Err(self.no_directory("does not exist"));
            }
        }
        Ok(upper)
    }

    fn object(
        &self,
        dir: &UpperDir,
        name: &std::ffi::CStr,
        buffers: &mut Buffers,
    ) -> Result<(Stat, Option<Extra>), CaptureError> {
        let failed = |what, errno: rustix::io::Errno| CaptureError::Read {
            path: self.at.clone(),
            what,
            source: errno.into(),
        };
        let stat = Stat::of(dir.fd(), name).map_err(|errno| failed("stat", errno))?;
        let extra = buffers.extra(dir.fd(), name, &stat).map_err(|(what, e)| failed(what, e))?;
        Ok((stat, extra))
    }

    /// Returns the object of the lower snapshot beneath `name`, in a directory backed by its
    /// directory `parent`. `extra` are the properties of the name in the upper layer; `at` is for
    /// messages.
    pub(super) fn below(
        &self,
        parent: Option<InodeIdx>,
        name: &[u8],
        extra: Option<&Extra>,
        at: &Path,
    ) -> Result<Option<(InodeIdx, FileKind)>, CaptureError> {
        if extra.is_some_and(|extra| extra.opaque) {
            return Ok(None);
        }
        match extra.and_then(|extra| extra.redirect.as_deref()) {
            None => self.child(parent, name),
            Some(redirect) => match redirect.strip_prefix(b"/") {
                None if redirect.is_empty() || redirect.contains(&b'/') => {
                    Err(CaptureError::Overlay { path: at.to_owned(), what: "no valid redirect" })
                }
                None => self.child(parent, redirect),
                Some(path) => self.absolute(path),
            },
        }
    }

    fn absolute(&self, path: &[u8]) -> Result<Option<(InodeIdx, FileKind)>, CaptureError> {
        let mut found = Some((InodeIdx::ROOT, FileKind::Directory));
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match found {
                Some((inode, FileKind::Directory)) => found = self.child(Some(inode), name)?,
                _ => return Ok(None),
            }
        }
        Ok(found)
    }

    /// Looks up `name` in the directory `parent` of the lower snapshot.
    fn child(
        &self,
        parent: Option<InodeIdx>,
        name: &[u8],
    ) -> Result<Option<(InodeIdx, FileKind)>, CaptureError> {
        let (Some(lower), Some(parent)) = (&self.view.lower, parent) else { return Ok(None) };
        let find = || -> Result<_, FormatError> {
            let Some(inode) = lower.index.lookup(parent, name)? else { return Ok(None) };
            let kind = lower.index.attr(inode)?.kind;
            Ok((!self.hides(inode, kind)?).then_some((inode, kind)))
        };
        find().map_err(self.wrong_index())
    }

    /// Reports whether overlayfs treats an object of the snapshot as a whiteout.
    pub(super) fn hides(&self, inode: InodeIdx, kind: FileKind) -> Result<bool, FormatError> {
        let Some(lower) = &self.view.lower else { return Ok(false) };
        Ok(self.view.upper.is_some()
            && kind == FileKind::CharDevice
            && lower.index.attr(inode)?.device == Device::default())
    }

    /// Returns a constructor of errors about the lower snapshot's index.
    pub(super) fn wrong_index(&self) -> impl Fn(FormatError) -> CaptureError + use<> {
        let id = self.view.lower.as_ref().map(|lower| lower.id);
        move |source| match id {
            Some(id) => CaptureError::Index { id, source },
            None => CaptureError::Overlay { path: PathBuf::new(), what: "no snapshot below" },
        }
    }
}
