//! The decoded bytes of an archive, counted: blocks, and bytes to read or to skip.

use std::io::{self, BufRead, BufReader, Read};

use crate::import::ImportError;

pub(super) const BLOCK: usize = 512;
const CAPACITY: usize = 256 << 10;

/// Why there are no more bytes.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The layer can't be read or decoded.
    Read(io::Error),
    /// It ends in the middle of something.
    Cut,
    /// It decodes to more than is allowed.
    Limit(u64),
}

impl StreamError {
    pub(super) fn of(self, layer: &str, at: u64) -> ImportError {
        let layer = layer.to_owned();
        match self {
            Self::Read(source) => ImportError::Layer { layer, source },
            Self::Cut => ImportError::Archive { layer, why: "it is cut short".into(), at },
            Self::Limit(limit) => {
                ImportError::Limit { what: layer, of: "bytes when decompressed", limit }
            }
        }
    }
}

/// How much may be decoded in all, and how much was.
#[derive(Debug, Clone, Copy)]
pub(in crate::import) struct Budget {
    pub(in crate::import) spent: u64,
    pub(in crate::import) limit: u64,
}

/// Bytes of an archive, with the place where the reader stands.
pub(super) struct Stream {
    source: BufReader<Box<dyn Read>>,
    position: u64,
    budget: Budget,
}

impl Stream {
    /// Not more than `budget` leaves is read from `source`.
    pub(super) fn new(source: Box<dyn Read>, budget: Budget) -> Self {
        Self { source: BufReader::with_capacity(CAPACITY, source), position: 0, budget }
    }

    /// The budget after what was read.
    pub(super) fn budget(&self) -> Budget {
        Budget { spent: self.budget.spent.saturating_add(self.position), ..self.budget }
    }

    /// Bytes that were taken.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// An error if `len` bytes more would be too many.
    pub(super) fn expect(&self, len: u64) -> Result<(), StreamError> {
        let Budget { spent, limit } = self.budget();
        if spent.saturating_add(len) > limit { Err(StreamError::Limit(limit)) } else { Ok(()) }
    }

    /// The next block; `None` at the end.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>, StreamError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(free) = block.get_mut(filled..).filter(|free| !free.is_empty()) {
            match self.read(free)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(StreamError::Cut),
                len => filled += len,
            }
        }
        Ok(Some(block))
    }

    /// Some of the next bytes; none at the end.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, StreamError> {
        let len = loop {
            match self.source.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(StreamError::Read)?,
            }
        };
        self.count(len)?;
        Ok(len)
    }

    /// The next `len` bytes, which the caller has bounded.
    pub(super) fn bytes(&mut self, len: usize) -> Result<Vec<u8>, StreamError> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while let Some(free) = bytes.get_mut(filled..).filter(|free| !free.is_empty()) {
            match self.read(free)? {
                0 => return Err(StreamError::Cut),
                len => filled += len,
            }
        }
        Ok(bytes)
    }

    /// Leaves the next `len` bytes out.
    pub(super) fn skip(&mut self, mut len: u64) -> Result<(), StreamError> {
        while len > 0 {
            match self.discard(len)? {
                0 => return Err(StreamError::Cut),
                skipped => len -= skipped,
            }
        }
        Ok(())
    }

    /// Reads to the end.
    pub(super) fn drain(&mut self) -> Result<(), StreamError> {
        while self.discard(u64::MAX)? > 0 {}
        Ok(())
    }

    fn discard(&mut self, most: u64) -> Result<u64, StreamError> {
        let ready = loop {
            match self.source.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(StreamError::Read)?.len(),
            }
        };
        let len = usize::try_from(most).map_or(ready, |most| most.min(ready));
        self.source.consume(len);
        self.count(len)?;
        Ok(len as u64)
    }

    fn count(&mut self, len: usize) -> Result<(), StreamError> {
        self.position += len as u64;
        self.expect(0)
    }
}
