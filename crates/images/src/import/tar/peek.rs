//! Implements a buffered reader with lookahead.

use std::io::{self, BufRead, Read};

const CAPACITY: usize = 128 << 10;

/// A buffered reader that can peek at the next few bytes.
pub(super) struct Peek {
    inner: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Peek {
    pub(super) fn new(inner: Box<dyn Read + Send>) -> Self {
        Self { inner, buffer: vec![0; CAPACITY].into(), start: 0, end: 0 }
    }

    /// Returns the next `len` bytes without consuming them; fewer only at the end. `len` must not
    /// exceed the buffer.
    pub(super) fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        while self.end - self.start < len {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.refill()? == 0 {
                break;
            }
        }
        let seen = self.end.min(self.start + len);
        Ok(self.buffer.get(self.start..seen).unwrap_or(&[]))
    }

    fn refill(&mut self) -> io::Result<usize> {
        let free = self.buffer.get_mut(self.end..).unwrap_or(&mut []);
        loop {
            match self.inner.read(free) {
                Ok(len) => {
                    self.end += len;
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl BufRead for Peek {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.refill()?;
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or(&[]))
    }

    fn consume(&mut self, len: usize) {
        self.start = self.end.min(self.start + len);
    }
}

impl Read for Peek {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && out.len() >= CAPACITY {
            return self.inner.read(out);
        }
        let mut ready = self.fill_buf()?;
        let len = ready.read(out)?;
        self.consume(len);
        Ok(len)
    }
}
