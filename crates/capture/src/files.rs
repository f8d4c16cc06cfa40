//! Reads the content of files in an upper directory, directly into the packer or to set it aside.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use inlay_images::import::dir::content::{RangeReader, ReadFailure, data_len, data_ranges};
use inlay_store::format::FileKind;
use inlay_store::pack::{Content, FileSink};
use rustix::fs::{CWD, Mode, OFlags, ioctl_ficlone, open, openat};
use rustix::io::Errno;

use super::error::CaptureError;
use super::merged_view::UpperRoot;
use super::options::CaptureLimits;
use super::scan::{DirScan, Entry};
use super::stat::{InodeId, Stamp, Stat};

/// The limits for setting files aside in memory, in bytes: per file, and for all files together.
const MEMORY_FILE_MAX: u64 = 1 << 20;
const MEMORY_MAX: u64 = 64 << 20;

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum Failure {
    /// It has changed since the scan.
    Changed(&'static str),
    System(&'static str, Errno),
    Pack(inlay_store::pack::PackError),
    /// It exceeds this limit, in bytes.
    Limit(u64),
}

impl Failure {
    fn at(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| match errno {
            Errno::NOENT => Self::Changed("was removed"),
            Errno::LOOP | Errno::NOTDIR | Errno::STALE => {
                Self::Changed("was replaced by something else")
            }
            errno => Self::System(what, errno),
        }
    }

    /// Converts to the error for the file at `path`.
    pub(super) fn error(self, path: PathBuf) -> CaptureError {
        match self {
            Self::Changed(what) => CaptureError::Changed { path, what },
            Self::System(what, errno) => CaptureError::Read { path, what, source: errno.into() },
            Self::Pack(source) => CaptureError::Pack { path, source },
            Self::Limit(limit) => {
                CaptureError::Limit { what: path.display().to_string(), of: "bytes", limit }
            }
        }
    }
}

/// Opens files directory by directory.
#[derive(Default)]
pub(super) struct Opener {
    /// The directory that was opened last, by device and inode number.
    dir: Option<(InodeId, OwnedFd)>,
}

/// An open file with its current metadata.
pub(super) struct OpenFile {
    file: OwnedFd,
    stat: Stat,
    data: Vec<Range<u64>>,
}

impl Opener {
    /// Opens the regular file that `entry` refers to, and fails if it is no longer that file.
    pub(super) fn open(
        &mut self,
        upper: &UpperRoot,
        dir: &DirScan,
        entry: &Entry,
        limits: &CaptureLimits,
    ) -> Result<OpenFile, Failure> {
        let fd = match &self.dir {
            Some((id, fd)) if *id == dir.stat.id => fd,
            _ => {
                let fd = upper.scan.open_dir(&upper.dir, dir).map_err(Failure::at("open"))?;
                &self.dir.insert((dir.stat.id, fd)).1
            }
        };
        let name =
            CString::new(dir.name(entry)).map_err(|_| Failure::System("open", Errno::INVAL))?;
        // Open with `O_PATH` first: opening a FIFO or a device has side effects.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place =
            openat(fd, name.as_c_str(), flags, Mode::empty()).map_err(Failure::at("open"))?;
        let stat = Stat::of(&place, c"").map_err(Failure::at("stat"))?;
        if stat.id != entry.stat.id || stat.kind() != Some(FileKind::Regular) {
            return Err(Failure::Changed("was replaced by something else"));
        }
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        let file = open(path, flags, Mode::empty()).map_err(Failure::at("open"))?;
        OpenFile::new(file, stat, limits)
    }
}

impl OpenFile {
    fn new(file: OwnedFd, stat: Stat, limits: &CaptureLimits) -> Result<Self, Failure> {
        let size = stat.stamp.size;
        // The block count is no hint of holes: it includes attribute blocks and preallocated ones.
        let data = data_ranges(&file, size).map_err(Failure::at("find holes"))?;
        let open = Self { file, stat, data };
        if open.data_len() > limits.file_bytes {
            return Err(Failure::Limit(limits.file_bytes));
        }
        Ok(open)
    }

    /// Returns the number of bytes outside of holes.
    pub(super) fn data_len(&self) -> u64 {
        data_len(&self.data)
    }

    /// Packs it. Returns the stamp that it had throughout the read.
    pub(super) fn pack(&self, sink: &mut dyn FileSink) -> Result<(Stamp, Content), Failure> {
        let mut reader = RangeReader::new(self.file.as_fd(), &self.data);
        let packed = sink.add_file(self.stat.stamp.size, &self.data, &mut reader);
        let content = packed.map_err(|source| match reader.failure() {
            Some(ReadFailure::Shrunk) => Failure::Changed("became shorter"),
            Some(ReadFailure::System(errno)) => Failure::System("read", errno),
            None => Failure::Pack(source),
        })?;
        self.confirm()?;
        Ok((self.stat.stamp, content))
    }

    fn confirm(&self) -> Result<(), Failure> {
        let after = Stat::of(&self.file, c"").map_err(Failure::at("stat"))?;
        if after.stamp == self.stat.stamp {
            Ok(())
        } else {
            Err(Failure::Changed("was written to"))
        }
    }
}

/// The content of a file that was set aside, out of reach of any writer.
pub(super) struct Aside {
    pub(super) stamp: Stamp,
    data: Vec<Range<u64>>,
    kept: Kept,
}

enum Kept {
    Memory(Vec<u8>),
    /// Sparse like the original.
    File(File),
}

/// Where files are set aside.
pub(super) struct Shelf<'a> {
    /// A directory on this host for copies.
    pub(super) scratch: &'a Path,
    /// The bytes in memory.
    memory: u64,
}

impl<'a> Shelf<'a> {
    pub(super) fn new(scratch: &'a Path) -> Self {
        Self { scratch, memory: 0 }
    }

    /// Sets `file` aside. `beside` is a directory on its filesystem, for a clone if that is
    /// supported.
    pub(super) fn put(&mut self, file: OpenFile, beside: &Path) -> Result<Aside, Failure> {
        let len = file.data_len();
        let kept = if len <= MEMORY_FILE_MAX && self.memory + len <= MEMORY_MAX {
            self.memory += len;
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            let mut reader = RangeReader::new(file.file.as_fd(), &file.data);
            let read = reader.read_to_end(&mut bytes);
            read.map_err(|error| match reader.failure() {
                Some(ReadFailure::Shrunk) => Failure::Changed("became shorter"),
                Some(ReadFailure::System(errno)) => Failure::System("read", errno),
                None => Failure::System("read", errno_of(&error)),
            })?;
            Kept::Memory(bytes)
        } else {
            match clone(&file, beside) {
                Some(clone) => Kept::File(clone),
                None => Kept::File(self.copy(&file)?),
            }
        };
        file.confirm()?;
        Ok(Aside { stamp: file.stat.stamp, data: file.data, kept })
    }

    fn copy(&self, file: &OpenFile) -> Result<File, Failure> {
        let failed = |error: std::io::Error| Failure::System("copy", errno_of(&error));
        let mut copy = tempfile::tempfile_in(self.scratch).map_err(failed)?;
        for range in &file.data {
            let piece = std::slice::from_ref(range);
            let mut reader = RangeReader::new(file.file.as_fd(), piece);
            copy.seek(SeekFrom::Start(range.start)).map_err(failed)?;
            let copied = std::io::copy(&mut reader, &mut copy);
            copied.map_err(|error| match reader.failure() {
                Some(ReadFailure::Shrunk) => Failure::Changed("became shorter"),
                _ => failed(error),
            })?;
        }
        copy.flush().map_err(failed)?;
        Ok(copy)
    }
}

/// Creates an unnamed file that shares the blocks (reflink); `None` if the filesystem does not
/// support it.
fn clone(file: &OpenFile, beside: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let clone = openat(CWD, beside, flags, Mode::RUSR | Mode::WUSR).ok()?;
    ioctl_ficlone(&clone, &file.file).ok()?;
    Some(clone.into())
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Aside {
    /// Packs it.
    pub(super) fn pack(&self, sink: &mut dyn FileSink) -> Result<Content, Failure> {
        let size = self.stamp.size;
        let packed = match &self.kept {
            Kept::Memory(bytes) => sink.add_file(size, &self.data, &mut bytes.as_slice()),
            Kept::File(file) => {
                sink.add_file(size, &self.data, &mut RangeReader::new(file.as_fd(), &self.data))
            }
        };
        packed.map_err(Failure::Pack)
    }

    /// Returns the number of bytes outside of holes.
    pub(super) fn data_len(&self) -> u64 {
        data_len(&self.data)
    }
}
