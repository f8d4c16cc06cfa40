//! Reads a regular file's contents for an export and ensures their exact length.

use std::io::{self, Write};
use std::ops::Range;

use inlay_store::format::{FileData, FormatError, Index, InodeIdx};

use super::error::{CopyError, ExportError, escaped};
use crate::import::dir::content::data_len;

/// Source of file contents.
pub trait FileBytes {
    /// Writes all bytes of `range` of the regular file `inode` to `out`. The range contains no
    /// hole; it may be larger than a reasonable buffer. Blocks until the bytes are available.
    fn copy(
        &self,
        inode: InodeIdx,
        range: Range<u64>,
        out: &mut dyn Write,
    ) -> Result<(), CopyError>;
}

/// Data ranges and holes of a file.
#[derive(Debug)]
pub(super) struct Content<'a> {
    inode: InodeIdx,
    inline: Option<&'a [u8]>,
    /// Sorted, non-empty, non-adjacent ranges; the gaps between and after them are holes.
    pub(super) data: Vec<Range<u64>>,
    /// Size of the file in bytes, holes included.
    pub(super) size: u64,
}

impl<'a> Content<'a> {
    pub(super) fn of(index: &'a Index, inode: InodeIdx, size: u64) -> Result<Self, FormatError> {
        let mut content = Self { inode, inline: None, data: Vec::new(), size };
        match index.data(inode)? {
            FileData::Hole => {}
            FileData::Inline(bytes) => {
                content.inline = Some(bytes);
                content.push(0..size);
            }
            FileData::Extents(extents) => {
                for extent in extents.within(0..size) {
                    let extent = extent?;
                    content.push(extent.file_offset..extent.file_end());
                }
            }
        }
        Ok(content)
    }

    fn push(&mut self, range: Range<u64>) {
        match self.data.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.data.push(range),
        }
    }

    /// Whether the file has no holes.
    pub(super) fn is_dense(&self) -> bool {
        match self.data.as_slice() {
            [] => self.size == 0,
            [all] => *all == (0..self.size),
            _ => false,
        }
    }

    /// Number of bytes outside holes.
    pub(super) fn data_len(&self) -> u64 {
        data_len(&self.data)
    }

    /// Writes the bytes of `range`, an element of `data`, to `out`.
    pub(super) fn copy(
        &self,
        range: &Range<u64>,
        bytes: &dyn FileBytes,
        out: &mut dyn Write,
    ) -> Result<(), CopyError> {
        if let Some(inline) = self.inline {
            return Ok(out.write_all(inline)?);
        }
        let mut exact = Exact { out, left: range.end - range.start };
        bytes.copy(self.inode, range.clone(), &mut exact)?;
        match exact.left {
            0 => Ok(()),
            left => Err(CopyError::Source(format!("{left} bytes are missing").into())),
        }
    }
}

/// Adds the path of the object to a copy error.
pub(super) fn copy_failed(path: &[u8], error: CopyError) -> ExportError {
    let path = escaped(path);
    match error {
        CopyError::Source(source) => ExportError::Bytes { path, source },
        CopyError::Sink(source) => ExportError::Object { path, doing: "writing its bytes", source },
    }
}

/// Limits the bytes written to the expected length, so that subsequent archive members stay at
/// their offsets.
struct Exact<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Exact<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.left {
            return Err(io::Error::other("more bytes than the file has"));
        }
        let written = self.out.write(buf)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
