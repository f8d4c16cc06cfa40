//! Adapts a snapshot's contents to the kernel side and to exports.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use inlay_base::bytes::filled;
use inlay_fusefs::{ContentError, ContentSource, ReadDone, ReadNow, WholeFile};
use inlay_images::export::{CopyError, FileBytes};
use inlay_store::format::InodeIdx;
use inlay_trace::Tier;
use inlay_trace::record::Read;

use super::{Now, SnapshotContent};

/// Maximum bytes of a file copied at once.
const COPY_LEN: usize = 1 << 20;

impl ContentSource for SnapshotContent {
    fn read_now(
        &self,
        inode: InodeIdx,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<ReadNow, ContentError> {
        match Self::read_now(self, inode, offset, buf)? {
            Now::Filled(len) if len == buf.len() => Ok(ReadNow::Filled),
            Now::Filled(len) => Err(short(len, buf.len())),
            Now::WouldWait => Ok(ReadNow::WouldWait),
        }
    }

    fn read_later(&self, inode: InodeIdx, offset: u64, len: u32, done: ReadDone) {
        let content = self.clone();
        let read = async move {
            done(match content.read(inode, offset, len).await {
                Ok(bytes) if bytes.len() == len as usize => Ok(bytes),
                Ok(bytes) => Err(short(bytes.len(), len as usize)),
                Err(error) => Err(error),
            });
        };
        self.inner.reads.spawn_on(read, &self.inner.runtime);
    }

    fn whole(&self, inode: InodeIdx) -> Option<WholeFile> {
        let (whole, content) = Self::whole(self, inode)?;
        let file = Arc::clone(whole.file());
        Some(WholeFile { file, content: content.digest, guard: Box::new(whole) })
    }

    fn read_elsewhere(&self, inode: InodeIdx, offset: u64, len: u32) {
        if let Some(source) = &self.inner.source
            && let Some(at) = source.begins(inode)
        {
            source.answered(Read { inode, offset, bytes: len }, Tier::Index, at);
        }
    }

    fn passed_through(&self, inode: InodeIdx) {
        if let Some(source) = &self.inner.source {
            source.passed(inode);
        }
    }
}

impl FileBytes for SnapshotContent {
    /// Blocks on the runtime, so it must not be called from one of its threads.
    fn copy(
        &self,
        inode: InodeIdx,
        range: Range<u64>,
        out: &mut dyn Write,
    ) -> Result<(), CopyError> {
        let mut buf = vec![0; COPY_LEN];
        let mut offset = range.start;
        while offset < range.end {
            let left = usize::try_from(range.end - offset).unwrap_or(COPY_LEN).min(COPY_LEN);
            let buf = buf.get_mut(..left).unwrap_or_default();
            let copied = match Self::read_now(self, inode, offset, buf) {
                Ok(Now::Filled(len)) => {
                    out.write_all(filled(buf, len)?)?;
                    len
                }
                Ok(Now::WouldWait) => {
                    let len = u32::try_from(left).unwrap_or(u32::MAX);
                    let bytes = self
                        .inner
                        .runtime
                        .block_on(self.read(inode, offset, len))
                        .map_err(|error| CopyError::Source(Box::new(error)))?;
                    out.write_all(&bytes)?;
                    bytes.len()
                }
                Err(error) => return Err(CopyError::Source(Box::new(error))),
            };
            if copied == 0 {
                return Err(CopyError::Source(Box::new(short(0, left))));
            }
            offset += copied as u64;
        }
        Ok(())
    }
}

/// Error for a file that ends, according to the index, before the requested range.
fn short(have: usize, want: usize) -> ContentError {
    ContentError::Corrupt {
        object: "the snapshot's index".into(),
        why: format!("a file has {have} bytes where {want} were asked for"),
    }
}
