//! Reads the decompressed bytes of an archive within a budget.

use std::io::{self, BufRead, BufReader, Read};

use crate::import::ImportError;

pub(super) const BLOCK: usize = 512;
const CAPACITY: usize = 256 << 10;

/// The reason a read failed.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The layer cannot be read or decompressed.
    Read(io::Error),
    /// It is truncated.
    Cut,
    /// It decompresses to more than the limit, in bytes.
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

/// Limit on decompressed bytes over several archives, and the bytes spent so far.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub(crate) spent: u64,
    pub(crate) limit: u64,
}

/// A stream of decompressed bytes with its position.
pub(super) struct Stream {
    source: BufReader<Box<dyn Read>>,
    position: u64,
    budget: Budget,
}

impl Stream {
    /// Reads from `source` within the remaining `budget`.
    pub(super) fn new(source: Box<dyn Read>, budget: Budget) -> Self {
        Self { source: BufReader::with_capacity(CAPACITY, source), position: 0, budget }
    }

    /// Returns the budget after the bytes consumed so far.
    pub(super) fn budget(&self) -> Budget {
        Budget { spent: self.budget.spent.saturating_add(self.position), ..self.budget }
    }

    /// Number of bytes consumed.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Fails if `len` more bytes would exceed the budget.
    pub(super) fn expect(&self, len: u64) -> Result<(), StreamError> {
        let Budget { spent, limit } = self.budget();
        if spent.saturating_add(len) > limit { Err(StreamError::Limit(limit)) } else { Ok(()) }
    }

    /// Reads the next block; `None` at the end.
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

    /// Reads some bytes; 0 at the end.
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

    /// Reads exactly `len` bytes, which the caller has bounded.
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

    /// Skips exactly `len` bytes.
    pub(super) fn skip(&mut self, mut len: u64) -> Result<(), StreamError> {
        while len > 0 {
            match self.discard(len)? {
                0 => return Err(StreamError::Cut),
                skipped => len -= skipped,
            }
        }
        Ok(())
    }

    /// Reads to the end and discards everything.
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
