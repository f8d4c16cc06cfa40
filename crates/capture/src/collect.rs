//! Visits the files in upper directories with unknown content, and packs them or sets them aside.

use std::collections::HashSet;
use std::path::PathBuf;

use inlay_images::import::Progress;
use inlay_store::format::FileKind;
use inlay_store::pack::{PackError, Packer};

use super::build::Packed;
use super::error::CaptureError;
use super::files::{Aside, Failure, Opener, Shelf};
use super::mapped::Mapped;
use super::merged_view::{Picture, UpperRoot};
use super::options::{Cancel, CaptureLimits};
use super::scan::{DirScan, Entry};
use super::stat::{InodeId, Moment};
use super::walk::{Here, Object, Source, Visitor};

/// What to do with a file.
pub(super) enum Task<'t> {
    /// Pack it. It may be written to concurrently; then it is left for later.
    Pack(LazyPacker<'t>),
    /// Set it aside. The subject must be frozen.
    SetAside(Shelf<'t>, Vec<FileAside>),
}

/// A packer that is created on first use.
pub(super) struct LazyPacker<'t> {
    pub(super) packer: Option<Box<Packer>>,
    pub(super) make: &'t dyn Fn() -> Result<Packer, CaptureError>,
}

impl LazyPacker<'_> {
    fn get(&mut self) -> Result<&mut Packer, CaptureError> {
        match &mut self.packer {
            Some(packer) => Ok(packer),
            none => Ok(none.insert(Box::new((self.make)()?))),
        }
    }
}

/// A file that was set aside.
pub(super) struct FileAside {
    pub(super) id: InodeId,
    pub(super) path: PathBuf,
    pub(super) aside: Aside,
}

/// The parameters common to all collectors of a capture.
#[derive(Clone, Copy)]
pub(super) struct Common<'a> {
    pub(super) mapped: &'a Mapped,
    pub(super) limits: &'a CaptureLimits,
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a dyn Progress,
}

/// The visitor of files with unknown content.
pub(super) struct Collector<'a, 't> {
    picture: &'a Picture,
    packed: &'a mut Packed,
    common: Common<'a>,
    task: &'a mut Task<'t>,
    opener: Opener,
    /// Visited inodes with several hard links.
    met: HashSet<InodeId>,
    /// The number of files taken.
    pub(super) files: u64,
    /// Their size in bytes.
    pub(super) bytes: u64,
}

impl<'a, 't> Collector<'a, 't> {
    pub(super) fn new(
        picture: &'a Picture,
        packed: &'a mut Packed,
        common: Common<'a>,
        task: &'a mut Task<'t>,
    ) -> Self {
        let (opener, met) = (Opener::default(), HashSet::new());
        Self { picture, packed, common, task, opener, met, files: 0, bytes: 0 }
    }

    /// Reports whether the current content of a file is known.
    fn is_known(&self, name: &[u8], entry: &Entry) -> bool {
        if self.common.mapped.may_be(name, &entry.stat) {
            return false;
        }
        let packed = self.packed.get(&entry.stat.id);
        entry.known.is_some() || packed.is_some_and(|(stamp, _)| *stamp == entry.stat.stamp)
    }

    fn file(
        &mut self,
        upper: &UpperRoot,
        dir: &DirScan,
        entry: &Entry,
        here: &Here<'_>,
    ) -> Result<(), CaptureError> {
        let name = dir.name(entry);
        let failed = |failure: Failure| failure.error(here.path(name));
        match self.task {
            Task::Pack(lazy) => {
                // It would have to be read again anyway.
                let now = Moment::now();
                if self.common.mapped.may_be(name, &entry.stat)
                    || !now.settled(entry.stat.stamp.ctime)
                {
                    return Ok(());
                }
                let packer = lazy.get()?;
                let opened = self.opener.open(upper, dir, entry, self.common.limits);
                let packed = opened.and_then(|file| {
                    let (stamp, content) = file.pack(packer)?;
                    Ok((file.data_len(), stamp, content))
                });
                match packed {
                    Ok((len, stamp, content)) => {
                        self.files += 1;
                        self.bytes += len;
                        self.common.progress.advance(0, len);
                        if now.settled(stamp.ctime) {
                            self.packed.insert(entry.stat.id, (stamp, content));
                        }
                    }
                    Err(Failure::Changed(_) | Failure::Pack(PackError::Short { .. })) => {}
                    Err(other) => return Err(failed(other)),
                }
            }
            Task::SetAside(shelf, asides) => {
                let opened = self.opener.open(upper, dir, entry, self.common.limits);
                let aside =
                    opened.and_then(|file| shelf.put(file, &upper.beside)).map_err(failed)?;
                self.files += 1;
                self.bytes += aside.data_len();
                asides.push(FileAside { id: entry.stat.id, path: here.path(name), aside });
            }
        }
        if self.bytes > self.common.limits.read_bytes {
            let (what, of) = ("what is captured".to_owned(), "bytes that have to be read");
            return Err(CaptureError::Limit { what, of, limit: self.common.limits.read_bytes });
        }
        Ok(())
    }
}

impl Visitor for Collector<'_, '_> {
    type Dir = ();

    fn take(
        &mut self,
        (): (),
        name: &[u8],
        object: &Object<'_>,
        here: &Here<'_>,
    ) -> Result<Option<()>, CaptureError> {
        let Source::Upper { dir, entry, .. } = object.source else { return Ok(Some(())) };
        if object.kind != FileKind::Regular || object.emptied {
            return Ok(Some(()));
        }
        if self.common.cancel.is_cancelled() {
            return Err(CaptureError::Cancelled);
        }
        let metacopy = entry.extra.as_ref().is_some_and(|extra| extra.metacopy);
        let again = entry.stat.nlink > 1 && !self.met.insert(entry.stat.id);
        if metacopy || again || self.is_known(name, entry) {
            return Ok(None);
        }
        let mounted = self.picture.mounts.get(object.mount);
        if let Some(upper) = mounted.and_then(|mounted| mounted.upper.as_ref()) {
            self.file(upper, dir, entry, here)?;
        }
        Ok(None)
    }
}
