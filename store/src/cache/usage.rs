//! The shared usage count: the bytes stored by all processes, in one small file updated under a
//! lock.
//!
//! Space is reserved before it is written, so a process that dies in between leaves the count too
//! high, never too low. The next process that opens the cache alone after such a crash recounts.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::disk::Disk;

const MAGIC: [u8; 8] = *b"INLAYUSE";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How long an update waits for the lock. Another process holds it for a recount, or was killed in
/// an update and can't exit before this one answers a request: then waiting longer would deadlock.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
/// Pause between attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// More than any cache can use: marks the count as unknown, so that nothing is stored until a
/// recount succeeds. The count may be too high at any time, but must never be too low.
pub(super) const UNKNOWN: u64 = 1 << 62;

/// The whole file. It needs no checksum: only a power loss can tear it, and then the boot id
/// differs.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct UsageRecord {
    magic: [u8; 8],
    /// Boot id at the last recount.
    boot: [u8; 40],
    bytes: U64,
}

/// The shared count.
#[derive(Debug)]
pub(super) struct Usage {
    /// The file lock excludes other processes, the mutex excludes other threads of this one.
    file: Mutex<File>,
    disk: Arc<dyn Disk>,
}

impl Usage {
    pub(super) fn open(path: &Path, disk: Arc<dyn Disk>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file: Mutex::new(file), disk })
    }

    /// Returns the count, if it is from the current boot.
    pub(super) fn valid(&self) -> Option<u64> {
        let mut record = UsageRecord::new_zeroed();
        self.file.lock().read_exact_at(record.as_mut_bytes(), 0).ok()?;
        (record.magic == MAGIC && record.boot == boot()).then_some(record.bytes.get())
    }

    /// Sets the count to `bytes`. The caller holds the cache's opening lock.
    pub(super) fn reset(&self, bytes: u64) -> io::Result<()> {
        let record = UsageRecord { magic: MAGIC, boot: boot(), bytes: U64::new(bytes) };
        self.file.lock().write_all_at(record.as_bytes(), 0)
    }

    /// Replaces the count with the result of `change`; `None` leaves it unchanged. Returns the
    /// resulting count and whether it changed. Atomic across processes. Fails with `TimedOut` if
    /// another process holds the lock for too long.
    pub(super) fn update(
        &self,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> io::Result<(u64, Outcome)> {
        let file = self.file.lock();
        lock(&file, LOCK_WITHIN)?;
        let updated = self.read_and_change(&file, change);
        file.unlock()?;
        updated
    }

    /// Reads and replaces the count. The caller holds both locks.
    fn read_and_change(
        &self,
        file: &File,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> io::Result<(u64, Outcome)> {
        let at = std::mem::offset_of!(UsageRecord, bytes) as u64;
        let mut bytes = U64::new(0);
        self.disk.read(file, bytes.as_mut_bytes(), at)?;
        let Some(changed) = change(bytes.get()) else {
            return Ok((bytes.get(), Outcome::Unchanged));
        };
        self.disk.write(file, U64::new(changed).as_bytes(), at)?;
        Ok((changed, Outcome::Changed))
    }
}

/// The outcome of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The count has its new value.
    Changed,
    /// The count is unchanged.
    Unchanged,
}

fn lock(file: &File, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn boot() -> [u8; 40] {
    let mut id = [0; 40];
    // Without an id, every boot looks the same. Files are still verified one by one.
    let text = std::fs::read(BOOT_ID).unwrap_or_default();
    for (to, from) in id.iter_mut().zip(text) {
        *to = from;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_keeps_other_processes_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage");
        let usage = Usage::open(&path, Arc::new(super::super::disk::SystemDisk)).unwrap();
        assert_eq!(usage.valid(), None);
        usage.reset(5).unwrap();
        let other = File::open(&path).unwrap();
        let update = usage.update(|bytes| {
            assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
            Some(bytes + 1)
        });
        assert_eq!(update.unwrap(), (6, Outcome::Changed));
        other.try_lock().unwrap();
        assert_eq!(usage.valid(), Some(6));
        let own = File::open(&path).unwrap();
        let timed_out = lock(&own, Duration::from_millis(20)).unwrap_err();
        assert_eq!(timed_out.kind(), io::ErrorKind::TimedOut);
    }
}
