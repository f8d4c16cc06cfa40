//! A regular file's bytes: where its data is, and a reader for just these.

use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};

/// As many holes of a file are kept; behind them, holes are read as zeros.
const PIECES_MAX: usize = 1 << 20;

/// The ranges of a file of `size` bytes that hold data.
pub(crate) fn data_ranges(file: impl AsFd, size: u64) -> Result<Vec<Range<u64>>, Errno> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole to the end.
            Err(Errno::NXIO) => break,
            // The file system knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error),
        };
        let end = match seek(&file, SeekFrom::Hole(start)) {
            _ if ranges.len() == PIECES_MAX => size,
            Ok(end) => end.min(size),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => size,
            Err(error) => return Err(error),
        };
        if start >= end {
            break;
        }
        ranges.push(start..end);
        at = end;
    }
    Ok(ranges)
}

/// Why a file could not be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadFailure {
    /// It is shorter than it was.
    Shrunk,
    System(Errno),
}

/// Reads the given ranges of a file, one after another, and asks the system for nothing else.
pub(crate) struct RangeReader<'a> {
    file: BorrowedFd<'a>,
    ranges: std::slice::Iter<'a, Range<u64>>,
    now: Range<u64>,
    failure: Option<ReadFailure>,
}

impl<'a> RangeReader<'a> {
    pub(crate) fn new(file: BorrowedFd<'a>, ranges: &'a [Range<u64>]) -> Self {
        Self { file, ranges: ranges.iter(), now: 0..0, failure: None }
    }

    /// Why the last read failed, if it did.
    pub(crate) fn failure(&self) -> Option<ReadFailure> {
        self.failure
    }
}

impl Read for RangeReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            let Some(next) = self.ranges.next() else { return Ok(0) };
            self.now = next.clone();
        }
        let left = usize::try_from(self.now.end - self.now.start).unwrap_or(usize::MAX);
        let len = left.min(out.len());
        let out = out.get_mut(..len).unwrap_or(&mut []);
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match pread(self.file, &mut *out, self.now.start) {
                Ok(0) => {
                    self.failure = Some(ReadFailure::Shrunk);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(len) => {
                    self.now.start += len as u64;
                    return Ok(len);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.failure = Some(ReadFailure::System(error));
                    return Err(error.into());
                }
            }
        }
    }
}
