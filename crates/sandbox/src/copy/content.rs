//! Reads the content of a regular file for an archive, which needs its size and data ranges up
//! front.
//!
//! The size from `stat` is only a snapshot. Files in `/proc` report 0 and have content, those in
//! `/sys` report 4096 and have one line, and a program may be writing to any file. So small files
//! are read before the size is written, and large ones are read up to that size only.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use inlay_images::import::dir::content::{RangeReader, ReadFailure, data_len, data_ranges};
use rustix::fs::fstat;
use rustix::io::{Errno, pread};
use tempfile::SpooledTempFile;

use super::error::CopyError;

/// Files of up to this size, in bytes, are read before their size is written.
const SMALL_MAX: usize = 64 << 10;
/// The maximum content of a file that reports a size of 0, in bytes.
const UNTOLD_MAX: u64 = 64 << 20;
/// How much of that is kept in memory, in bytes; the rest goes to a temporary file.
const UNTOLD_MEMORY_MAX: usize = 1 << 20;

/// The treatment of holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// They stay holes, in GNU tar's sparse format.
    Kept,
    /// They become zeros, which every archive reader supports.
    Filled,
}

/// The content of a file.
#[derive(Debug)]
pub(super) struct Content {
    /// The file's size in bytes, including holes.
    pub(super) size: u64,
    /// The ranges that hold data.
    pub(super) data: Vec<Range<u64>>,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// The data ranges, concatenated.
    Read(Vec<u8>),
    Spooled(SpooledTempFile),
    InFile(OwnedFd),
}

impl Content {
    /// Examines `file`, which must be open for reading; `shown` is its path for messages.
    pub(super) fn of(file: OwnedFd, holes: Holes, shown: &Path) -> Result<Self, CopyError> {
        let size = size_of(&file, shown)?;
        if size == 0 {
            return Self::untold(file, shown);
        }
        let data = match holes {
            Holes::Kept => {
                data_ranges(&file, size).map_err(CopyError::io("find holes of", shown))?
            }
            Holes::Filled => std::iter::once(0..size).collect(),
        };
        if usize::try_from(size).is_ok_and(|size| size <= SMALL_MAX) {
            return Self::small(&file, size, data, shown);
        }
        // A part that was truncated in the meantime looks like a hole.
        if size_of(&file, shown)? < size {
            return Err(CopyError::Shrunk(shown.to_owned()));
        }
        Ok(Self { size, data, bytes: Bytes::InFile(file) })
    }

    fn small(
        file: &OwnedFd,
        mut size: u64,
        ranges: Vec<Range<u64>>,
        shown: &Path,
    ) -> Result<Self, CopyError> {
        let mut bytes = Vec::new();
        let mut data = Vec::new();
        for mut range in ranges {
            let wanted = usize::try_from(range.end - range.start).unwrap_or(SMALL_MAX);
            let start = bytes.len();
            bytes.resize(start + wanted, 0);
            let read = read_at(file, bytes.get_mut(start..).unwrap_or(&mut []), range.start);
            let read = read.map_err(CopyError::io("read", shown))?;
            bytes.truncate(start + read);
            let short = read < wanted;
            range.end = range.start + read as u64;
            if !range.is_empty() {
                data.push(range.clone());
            }
            if short {
                // The file ends here, regardless of `stat`.
                size = range.end;
                break;
            }
        }
        Ok(Self { size, data, bytes: Bytes::Read(bytes) })
    }

    /// Reads a file that reports a size of 0.
    fn untold(file: OwnedFd, shown: &Path) -> Result<Self, CopyError> {
        let failed = || CopyError::io("read", shown);
        let mut spool = SpooledTempFile::new(UNTOLD_MEMORY_MAX);
        let file = File::from(file);
        let size = io::copy(&mut (&file).take(UNTOLD_MAX + 1), &mut spool).map_err(failed())?;
        // If it has a size by now, it is being written to, and was read up to here.
        if size > UNTOLD_MAX && size_of(&file, shown)? == 0 {
            return Err(CopyError::Endless { path: shown.to_owned(), limit: UNTOLD_MAX });
        }
        spool.seek(SeekFrom::Start(0)).map_err(failed())?;
        let data = if size == 0 { Vec::new() } else { std::iter::once(0..size).collect() };
        Ok(Self { size, data, bytes: Bytes::Spooled(spool) })
    }

    /// Returns the number of bytes outside of holes.
    pub(super) fn data_len(&self) -> u64 {
        data_len(&self.data)
    }

    /// Reports whether it has holes.
    pub(super) fn has_holes(&self) -> bool {
        self.data_len() != self.size
    }

    /// Writes the data.
    pub(super) fn write(self, out: &mut dyn io::Write, shown: &Path) -> Result<(), CopyError> {
        match self.bytes {
            Bytes::Read(bytes) => out.write_all(&bytes).map_err(CopyError::Write),
            Bytes::Spooled(mut spool) => {
                copy(&mut spool, self.size, out, |error| CopyError::io("read", shown)(error))
            }
            Bytes::InFile(file) => {
                let len = data_len(&self.data);
                let mut reader = RangeReader::new(file.as_fd(), &self.data);
                let copied =
                    copy(&mut reader, len, out, |error| CopyError::io("read", shown)(error));
                match reader.failure() {
                    Some(ReadFailure::Shrunk) => Err(CopyError::Shrunk(shown.to_owned())),
                    _ => copied,
                }
            }
        }
    }
}

/// Copies `len` bytes; distinguishes read errors from write errors.
fn copy(
    from: &mut dyn Read,
    mut len: u64,
    out: &mut dyn io::Write,
    failed: impl Fn(io::Error) -> CopyError,
) -> Result<(), CopyError> {
    let mut buffer = vec![0; 128 << 10];
    while len > 0 {
        let most = usize::try_from(len).map_or(buffer.len(), |len| len.min(buffer.len()));
        let read = from.read(buffer.get_mut(..most).unwrap_or(&mut [])).map_err(&failed)?;
        if read == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        out.write_all(buffer.get(..read).unwrap_or(&[])).map_err(CopyError::Write)?;
        len -= read as u64;
    }
    Ok(())
}

fn read_at(file: &OwnedFd, out: &mut [u8], from: u64) -> Result<usize, Errno> {
    let mut read = 0;
    while let Some(free) = out.get_mut(read..).filter(|free| !free.is_empty()) {
        match pread(file, free, from + read as u64) {
            Ok(0) => break,
            Ok(len) => read += len,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(read)
}

fn size_of(file: impl AsFd, shown: &Path) -> Result<u64, CopyError> {
    let stat = fstat(file).map_err(CopyError::io("look at", shown))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}
