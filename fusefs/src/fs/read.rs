//! Reads file contents and finds data and holes.

use std::cell::Cell;
use std::ops::Range;

use inlay_store::format::{FileData, InodeIdx};

use super::{SnapshotFs, damaged};
use crate::content::{ContentError, ReadNow};
use crate::error::FsError;

/// Maximum length of a read, in bytes, as negotiated with the kernel (256 pages). A longer one
/// fails, because the kernel takes a short reply for the end of the file.
pub(crate) const READ_LEN_MAX: u32 = 1 << 20;

static ZEROS: [u8; READ_LEN_MAX as usize] = [0; READ_LEN_MAX as usize];

thread_local! {
    /// Taken out while in use: after a thread's first read, reads do not allocate.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How a read was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// At once.
    Now,
    /// After the content source fetched the bytes.
    Later,
}

/// Target of a seek.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data byte.
    Data,
    /// The next hole; the end of the file counts as one.
    Hole,
}

/// Where the bytes of a read come from.
#[derive(Debug)]
enum Plan<'a> {
    Here(&'a [u8]),
    Source { len: u32 },
}

impl SnapshotFs {
    /// Reads up to `len` bytes from `offset`, at most 1 MiB, and calls `reply` once: on this thread
    /// if the bytes are in the index, in a hole or cached; otherwise on a thread of the source,
    /// once fetched. Fewer bytes than `len` mean end of file.
    pub fn read<R>(&self, inode: InodeIdx, offset: u64, len: u32, reply: R)
    where
        R: FnOnce(Answered, Result<&[u8], FsError>) + Send + 'static,
    {
        let len = match self.plan(inode, offset, len) {
            Ok(Plan::Here(bytes)) => {
                if let Ok(len @ 1..) = u32::try_from(bytes.len()) {
                    self.source.read_elsewhere(inode, offset, len);
                }
                return reply(Answered::Now, Ok(bytes));
            }
            Ok(Plan::Source { len }) => len,
            Err(error) => return reply(Answered::Now, Err(error)),
        };
        let mut buffer = BUFFER.take();
        if buffer.len() < len as usize {
            buffer.resize(len as usize, 0);
        }
        let failed = move |source| FsError::Content { inode, offset, len, source };
        #[expect(clippy::indexing_slicing, reason = "the buffer was resized above")]
        let bytes = &mut buffer[..len as usize];
        match self.source.read_now(inode, offset, bytes) {
            Ok(ReadNow::Filled) => reply(Answered::Now, Ok(bytes)),
            Err(error) => reply(Answered::Now, Err(failed(error))),
            Ok(ReadNow::WouldWait) => {
                let done = move |outcome: Result<bytes::Bytes, ContentError>| match outcome {
                    Ok(bytes) if bytes.len() == len as usize => reply(Answered::Later, Ok(&bytes)),
                    Ok(bytes) => {
                        let why = format!("{} bytes came", bytes.len());
                        let error = ContentError::Corrupt { object: "the file".into(), why };
                        reply(Answered::Later, Err(failed(error)));
                    }
                    Err(error) => reply(Answered::Later, Err(failed(error))),
                };
                self.source.read_later(inode, offset, len, Box::new(done));
            }
        }
        BUFFER.set(buffer);
    }

    /// Returns the offset of the first data or hole byte at or after `offset`.
    pub fn seek(&self, inode: InodeIdx, offset: u64, seek: Seek) -> Result<u64, FsError> {
        let size = self.attr(inode)?.size;
        let data = self.index.data(inode).map_err(|e| damaged(inode, e))?;
        if offset >= size {
            return Err(FsError::NothingAfter);
        }
        let extents = match (data, seek) {
            (FileData::Hole, Seek::Hole) | (FileData::Inline(_), Seek::Data) => return Ok(offset),
            (FileData::Hole, Seek::Data) => return Err(FsError::NothingAfter),
            (FileData::Inline(_), Seek::Hole) => return Ok(size),
            (FileData::Extents(extents), _) => extents,
        };
        let mut end = offset;
        for extent in extents.within(offset..size) {
            let extent = extent.map_err(|e| damaged(inode, e))?;
            match seek {
                Seek::Data => return Ok(extent.file_offset.max(offset)),
                Seek::Hole if extent.file_offset > end => return Ok(end),
                Seek::Hole => end = extent.file_end(),
            }
        }
        match seek {
            Seek::Data => Err(FsError::NothingAfter),
            Seek::Hole => Ok(end),
        }
    }

    fn plan(&self, inode: InodeIdx, offset: u64, len: u32) -> Result<Plan<'_>, FsError> {
        if len > READ_LEN_MAX {
            return Err(FsError::Invalid("a read of more than was agreed on"));
        }
        let size = self.attr(inode)?.size;
        let data = self.index.data(inode).map_err(|e| damaged(inode, e))?;
        let len = u32::try_from(size.saturating_sub(offset)).unwrap_or(u32::MAX).min(len);
        if len == 0 {
            return Ok(Plan::Here(&[]));
        }
        // Never an empty slice instead: it would look like the end of the file.
        let here = |bytes: Option<_>| {
            let why = "a file has fewer bytes than its size".to_owned();
            let object = "the snapshot's index".to_owned();
            let source = ContentError::Corrupt { object, why };
            bytes.map(Plan::Here).ok_or(FsError::Content { inode, offset, len, source })
        };
        let zeros = || here(ZEROS.get(..len as usize));
        match data {
            FileData::Hole => zeros(),
            FileData::Inline(bytes) => here(range_of(offset, len).and_then(|r| bytes.get(r))),
            FileData::Extents(extents) => {
                match extents.within(offset..offset + u64::from(len)).next() {
                    None => zeros(),
                    Some(Ok(_)) => Ok(Plan::Source { len }),
                    Some(Err(error)) => Err(damaged(inode, error)),
                }
            }
        }
    }
}

fn range_of(offset: u64, len: u32) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len as usize)?)
}
