//! Scans one directory: its names and their metadata.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::RawDir;
use rustix::io::Errno;

use super::pool::{Job, Shared, entries_limit};
use super::{DirIdx, DirScan, Entry, Strictness};
use crate::error::CaptureError;
use crate::layer::Buffers;
use crate::paths::join;
use crate::stat::{Moment, Stat};

const LIST_BUFFER: usize = 64 << 10;

/// NUL-terminated names, and the range of each without the NUL, sorted.
type Names = (Box<[u8]>, Vec<Range<u32>>);

/// A scanned directory, and the subdirectories still to scan: their positions in `entries` and
/// their numbers in the previous scan.
pub(super) struct Found {
    pub(super) scan: DirScan,
    pub(super) dirs: Vec<(usize, DirIdx)>,
}

/// Scans one directory after another.
pub(super) struct DirReader<'a> {
    shared: &'a Shared<'a>,
    buffers: Buffers,
    list: Box<[MaybeUninit<u8>]>,
    path: Vec<u8>,
}

impl<'a> DirReader<'a> {
    pub(super) fn new(shared: &'a Shared<'a>) -> Self {
        Self {
            shared,
            buffers: Buffers::new(),
            list: vec![MaybeUninit::uninit(); LIST_BUFFER].into(),
            path: Vec::new(),
        }
    }

    /// Scans a directory. `None`: it is gone or was replaced.
    pub(super) fn read(&mut self, job: &Job) -> Result<Option<Found>, CaptureError> {
        let shared = self.shared;
        shared.compose(job.path, &mut self.path);
        let fd = match shared.root.open_dir(&self.path) {
            Ok(fd) => fd,
            Err(error) => return shared.failed(job.path, b"", "open", error).map(|()| None),
        };
        let looked = Moment::now();
        let stat = match Stat::of(&fd, c"") {
            Ok(stat) => stat,
            Err(error) => return shared.failed(job.path, b"", "stat", error).map(|()| None),
        };
        if stat.id.inode != job.inode {
            let what = "was replaced by something else";
            return shared.changed(job.path, b"", what).map(|()| None);
        }
        let before = shared.before.and_then(|scan| scan.dir(job.before));
        let kept = before.filter(|dir| dir.settled && dir.stat.stamp == stat.stamp);
        let (names, ranges) = match kept {
            Some(dir) => (dir.names.clone(), dir.entries.iter().map(|e| e.name.clone()).collect()),
            None => self.list(fd.as_fd(), job)?,
        };
        let mut scan = DirScan {
            path: job.path,
            stat,
            names,
            entries: Box::default(),
            settled: looked.settled(stat.stamp.ctime),
        };
        let mut entries = Vec::with_capacity(ranges.len());
        let mut dirs = Vec::new();
        for (place, range) in ranges.into_iter().enumerate() {
            if shared.stopped() {
                return Ok(None);
            }
            let earlier = match kept {
                Some(dir) => dir.entries.get(place),
                None => before.and_then(|dir| dir.find(bytes(&scan.names, &range))),
            };
            let Some(entry) = self.entry(fd.as_fd(), job, &scan.names, range, earlier)? else {
                scan.settled = false;
                continue;
            };
            if entry.stat.is_dir() && !self.excluded(&scan, &entry) {
                dirs.push((entries.len(), earlier.map_or(DirIdx::NONE, |earlier| earlier.dir)));
            }
            entries.push(entry);
        }
        scan.entries = entries.into();
        self.confirm(fd.as_fd(), job, &scan)?;
        Ok(Some(Found { scan, dirs }))
    }

    /// In strict mode, ensures that the directory has not changed during its scan.
    fn confirm(&self, fd: BorrowedFd<'_>, job: &Job, scan: &DirScan) -> Result<(), CaptureError> {
        if self.shared.scanner.strictness == Strictness::Loose {
            return Ok(());
        }
        match Stat::of(fd, c"") {
            Ok(after) if after.stamp == scan.stat.stamp => Ok(()),
            Ok(_) => self.shared.changed(job.path, b"", "was changed"),
            Err(error) => self.shared.failed(job.path, b"", "stat", error),
        }
    }

    fn excluded(&mut self, scan: &DirScan, entry: &Entry) -> bool {
        let exclude = self.shared.scanner.exclude;
        if exclude.is_empty() {
            return false;
        }
        let mut path = self.shared.at.as_os_str().as_encoded_bytes().to_vec();
        join(&mut path, &self.path);
        join(&mut path, scan.name(entry));
        exclude.pattern(&path, true).is_some()
    }

    /// Lists the names in a directory, NUL-terminated, with the range of each, sorted.
    fn list(&mut self, fd: BorrowedFd<'_>, job: &Job) -> Result<Names, CaptureError> {
        let limit = self.shared.scanner.entries_max;
        let mut heap: Vec<u8> = Vec::new();
        let mut found: Vec<Range<u32>> = Vec::new();
        let mut reader = RawDir::new(fd, &mut self.list);
        while let Some(entry) = reader.next() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(_) if found.len() as u64 >= limit => {
                    return Err(entries_limit(self.shared.at, limit));
                }
                Ok(entry) => {
                    let start = heap.len();
                    heap.extend_from_slice(entry.file_name().to_bytes_with_nul());
                    // The names of one directory are far below 4 GiB: their number is limited.
                    let (Ok(start), Ok(end)) =
                        (u32::try_from(start), u32::try_from(heap.len() - 1))
                    else {
                        return Err(entries_limit(self.shared.at, limit));
                    };
                    found.push(start..end);
                }
                Err(error) => {
                    self.shared.failed(job.path, b"", "list", error)?;
                    break;
                }
            }
        }
        found.sort_unstable_by(|a, b| bytes(&heap, a).cmp(bytes(&heap, b)));
        found.dedup_by(|a, b| bytes(&heap, a) == bytes(&heap, b));
        Ok((heap.into(), found))
    }

    /// Examines one name. `None`: it is gone.
    fn entry(
        &mut self,
        fd: BorrowedFd<'_>,
        job: &Job,
        names: &[u8],
        range: Range<u32>,
        earlier: Option<&Entry>,
    ) -> Result<Option<Entry>, CaptureError> {
        let shared = self.shared;
        let with_nul = names.get(range.start as usize..=range.end as usize).unwrap_or(&[]);
        let Ok(name) = CStr::from_bytes_with_nul(with_nul) else { return Ok(None) };
        let failed = |doing, error: Errno| shared.failed(job.path, name.to_bytes(), doing, error);
        let stat = match Stat::of(fd, name) {
            Ok(stat) => stat,
            Err(error) => return failed("stat", error).map(|()| None),
        };
        let mut entry = Entry { name: range, stat, extra: None, known: None, dir: DirIdx::NONE };
        if stat.is_whiteout() {
            return Ok(Some(entry));
        }
        if let Some(earlier) = earlier
            && same(&earlier.stat, &stat)
            && shared.before.is_some_and(|scan| scan.begun.settled(stat.stamp.ctime))
        {
            entry.extra.clone_from(&earlier.extra);
            entry.known = earlier.known;
            return Ok(Some(entry));
        }
        if !stat.is_dir() {
            entry.known = shared.scanner.seen.find(&stat);
        }
        if entry.known.is_none() {
            match self.buffers.extra(fd, name, &stat) {
                Ok(extra) => entry.extra = extra.map(Arc::new),
                Err((doing, error)) => return failed(doing, error).map(|()| None),
            }
        }
        Ok(Some(entry))
    }
}

/// Reports whether an object is unchanged. Other hard links of its inode do not matter.
fn same(before: &Stat, now: &Stat) -> bool {
    before.id == now.id && before.stamp == now.stamp && before.mode == now.mode
}

fn bytes<'n>(names: &'n [u8], range: &Range<u32>) -> &'n [u8] {
    names.get(range.start as usize..range.end as usize).unwrap_or(&[])
}
