//! A regular file's bytes: where they are, and exactly as many as there should be.

use std::io::{self, Write};
use std::ops::Range;

use inlay_store::format::{FileData, FormatError, Index, InodeIdx};

use super::error::{CopyError, ExportError, shown};

/// Gives files' bytes, wherever they are.
pub trait FileBytes {
    /// Writes the bytes `range` of the regular file `inode` to `out`, all of them. The range lies
    /// inside one stretch of the file without a hole; it may be longer than any buffer should be.
    /// Blocks until the bytes are there.
    fn copy(
        &self,
        inode: InodeIdx,
        range: Range<u64>,
        out: &mut dyn Write,
    ) -> Result<(), CopyError>;
}

/// A file's bytes and holes.
#[derive(Debug)]
pub(super) struct Content<'a> {
    inode: InodeIdx,
    inline: Option<&'a [u8]>,
    /// Sorted, neither empty nor touching each other; between them and after them is hole.
    pub(super) data: Vec<Range<u64>>,
    /// The whole file, in bytes.
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

    /// Whether there are no holes.
    pub(super) fn is_dense(&self) -> bool {
        match self.data.as_slice() {
            [] => self.size == 0,
            [all] => *all == (0..self.size),
            _ => false,
        }
    }

    /// Bytes that are not hole.
    pub(super) fn data_len(&self) -> u64 {
        self.data.iter().map(|range| range.end - range.start).sum()
    }

    /// Writes the bytes of `range`, which is one of `data`, to `out`.
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

/// Says of which object a copy failed.
pub(super) fn copy_failed(path: &[u8], error: CopyError) -> ExportError {
    let path = shown(path);
    match error {
        CopyError::Source(source) => ExportError::Bytes { path, source },
        CopyError::Sink(source) => ExportError::Object { path, doing: "writing its bytes", source },
    }
}

/// Passes on no more than it should, so that what follows in an archive stays where it belongs.
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
