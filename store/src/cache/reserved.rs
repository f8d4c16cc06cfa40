//! Publishes the bytes that a process has reserved and not yet written, so that recounts by other
//! processes include them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;

/// The reservations of this open cache. The file holds their sum, 8 bytes in little-endian order.
#[derive(Debug)]
pub(super) struct Reserved {
    /// The lock orders the writes to the file.
    bytes: Mutex<u64>,
    file: File,
}

impl Reserved {
    /// Publishes in `file` that nothing is reserved.
    pub(super) fn in_file(file: File) -> io::Result<Self> {
        file.write_all_at(&0u64.to_le_bytes(), 0)?;
        Ok(Self { bytes: Mutex::new(0), file })
    }

    pub(super) fn bytes(&self) -> u64 {
        *self.bytes.lock()
    }

    /// Adds a reservation. On an error, nothing is reserved.
    pub(super) fn add(&self, more: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock();
        let sum = bytes.saturating_add(more);
        self.file.write_all_at(&sum.to_le_bytes(), 0)?;
        *bytes = sum;
        Ok(())
    }

    /// Ends a reservation.
    pub(super) fn subtract(&self, less: u64) {
        let mut bytes = self.bytes.lock();
        *bytes = bytes.saturating_sub(less);
        if let Err(error) = self.file.write_all_at(&bytes.to_le_bytes(), 0) {
            // Too high for other processes until the next change.
            tracing::debug!(%error, "can't update a reservation of cache space");
        }
    }
}

/// Returns the bytes published in `file`; 0 if its owner has not published anything.
pub(super) fn published(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
        read => read.map(|()| u64::from_le_bytes(bytes)),
    }
}
