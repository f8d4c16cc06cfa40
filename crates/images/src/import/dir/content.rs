//! Locates the data ranges of a regular file and reads only these.

use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};

/// Maximum data ranges of a file; holes after the last one are read as zeros.
const PIECES_MAX: usize = 1 << 20;

/// Returns the data ranges of a file of `size` bytes.
pub fn data_ranges(file: impl AsFd, size: u64) -> Result<Vec<Range<u64>>, Errno> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole remains.
            Err(Errno::NXIO) => break,
            // The filesystem does not report holes.
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

/// Returns the total length of the data ranges.
pub fn data_len(data: &[Range<u64>]) -> u64 {
    data.iter().map(|range| range.end - range.start).sum()
}

/// The reason a file could not be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFailure {
    /// The file is shorter than before.
    Shrunk,
    /// The read failed.
    System(Errno),
}

/// Reads the given ranges of a file in order, and nothing else.
pub struct RangeReader<'a> {
    file: BorrowedFd<'a>,
    ranges: std::slice::Iter<'a, Range<u64>>,
    now: Range<u64>,
    failure: Option<ReadFailure>,
}

impl<'a> RangeReader<'a> {
    /// `ranges` are byte offsets from the start of the file.
    pub fn new(file: BorrowedFd<'a>, ranges: &'a [Range<u64>]) -> Self {
        Self { file, ranges: ranges.iter(), now: 0..0, failure: None }
    }

    /// Reason of the last read's failure, if it failed.
    pub fn failure(&self) -> Option<ReadFailure> {
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
