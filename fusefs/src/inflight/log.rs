//! Stores requests that outlive their thread's turn, in the ledger's memfd behind the ledger's own
//! records.
//!
//! A record has 1,024 bytes: the connection's code, then the request. It is written with one
//! syscall and lies within one page, so the kernel writes it whole even if the writer is killed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, seek};
use rustix::io::{Errno, pread, pwrite};

use super::text::{RequestText, TEXT_LEN_MAX};
use crate::kind::ConnectionKind;

/// Offset of the records; the ledger's own end at 64 MiB.
const LOG_AT: u64 = 1 << 30;
const RECORD_LEN: usize = 1024;
const HEAD_LEN: usize = 8;
/// Maximum number of records. Per connection, the kernel has at most 256 background requests in
/// flight, plus one per blocked thread.
const RECORDS_MAX: u32 = 64 << 10;
/// End of the area.
const LOG_END: u64 = LOG_AT + RECORD_LEN as u64 * RECORDS_MAX as u64;

const _: () = assert!(HEAD_LEN + TEXT_LEN_MAX <= RECORD_LEN && 4096 % RECORD_LEN == 0);

/// Index of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogPosition(u32);

/// The records of the serving process.
#[derive(Debug)]
pub(super) struct Log {
    /// Shared, because closing any descriptor of the file drops the ledger's lock.
    file: Arc<OwnedFd>,
    free: Vec<LogPosition>,
    /// First index that was never used.
    next: u32,
}

/// A record read from the file.
pub(super) type FoundRecord = (LogPosition, ConnectionKind, RequestText);

impl Log {
    /// Reads the records of earlier servers.
    pub(super) fn open(file: Arc<OwnedFd>) -> io::Result<(Self, Vec<FoundRecord>)> {
        let found = read_all(&*file)?;
        let next = found.iter().map(|(place, ..)| place.0 + 1).max().unwrap_or(0);
        let mut used: Vec<_> = found.iter().map(|(place, ..)| place.0).collect();
        used.sort_unstable();
        let unused = |place: &u32| used.binary_search(place).is_err();
        let free = (0..next).filter(unused).map(LogPosition).collect();
        Ok((Self { file, free, next }, found))
    }

    /// Writes a record. Fails if all are in use.
    pub(super) fn add(
        &mut self,
        kind: ConnectionKind,
        text: &RequestText,
    ) -> io::Result<LogPosition> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.next < RECORDS_MAX => LogPosition(self.next),
            None => return Err(io::Error::other("too many requests are in flight")),
        };
        let mut record = Vec::with_capacity(HEAD_LEN + text.bytes().len());
        record.extend(u64::from(kind.code()).to_ne_bytes());
        record.extend(text.bytes());
        match write(&self.file, place, &record) {
            Ok(()) => {
                self.next = self.next.max(place.0 + 1);
                Ok(place)
            }
            Err(error) => {
                if place.0 < self.next {
                    self.free.push(place);
                }
                Err(error)
            }
        }
    }

    /// Reads a record; `None` if it is free or damaged.
    pub(super) fn read(
        &self,
        place: LogPosition,
    ) -> io::Result<Option<(ConnectionKind, RequestText)>> {
        let mut record = [0; RECORD_LEN];
        let len = pread(&*self.file, &mut record[..], place.offset())?;
        Ok(parse(record.get(..len).unwrap_or_default()))
    }

    /// Clears a record.
    pub(super) fn remove(&mut self, place: LogPosition) -> io::Result<()> {
        write(&self.file, place, &[0; HEAD_LEN])?;
        self.free.push(place);
        Ok(())
    }
}

impl LogPosition {
    fn offset(self) -> u64 {
        LOG_AT + u64::from(self.0) * RECORD_LEN as u64
    }
}

/// Reads all records in `file`.
pub(super) fn read_all(file: impl AsFd) -> io::Result<Vec<FoundRecord>> {
    let len = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
    let mut found = Vec::new();
    let mut page = [0; 4096];
    let mut at = LOG_AT;
    // Only read pages that were written: skip holes.
    while at < len.min(LOG_END) {
        at = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data & !4095,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        if at >= LOG_END {
            break;
        }
        let read = pread(&file, &mut page[..], at)?;
        for (number, record) in page.get(..read).unwrap_or_default().chunks(RECORD_LEN).enumerate()
        {
            let offset = at - LOG_AT + (number * RECORD_LEN) as u64;
            let place = u32::try_from(offset / RECORD_LEN as u64).map_err(io::Error::other)?;
            if let Some((kind, text)) = parse(record) {
                found.push((LogPosition(place), kind, text));
            }
        }
        at += 4096;
    }
    Ok(found)
}

/// Clears all records in `file`.
pub(super) fn clear(file: impl AsFd) -> io::Result<()> {
    punch(file, LOG_AT, LOG_END - LOG_AT)
}

/// Punches a hole into `file`; its length is unchanged.
pub(super) fn punch(file: impl AsFd, at: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, at, len)?)
}

fn write(file: &OwnedFd, place: LogPosition, bytes: &[u8]) -> io::Result<()> {
    match pwrite(file, bytes, place.offset())? {
        len if len == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn parse(record: &[u8]) -> Option<(ConnectionKind, RequestText)> {
    let code = u64::from_ne_bytes(*record.first_chunk()?);
    let kind = ConnectionKind::from_code(u8::try_from(code).ok()?)?;
    Some((kind, RequestText::parse(record.get(HEAD_LEN..)?)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Ledger;

    proptest! {
        #[test]
        fn records_are_found_as_a_map_has_them(
            steps in prop::collection::vec((any::<bool>(), 1..40u64), 1..120),
        ) {
            let file = Arc::new(Ledger::create().unwrap());
            let (mut log, _) = Log::open(Arc::clone(&file)).unwrap();
            let mut model = std::collections::BTreeMap::new();
            for (number, (add, unique)) in steps.into_iter().enumerate() {
                if add && !model.contains_key(&unique) {
                    let text = RequestText::for_tests(unique, unique, 1);
                    let place = log.add(ConnectionKind::Plain, &text).unwrap();
                    model.insert(unique, (place, text));
                } else if let Some((place, _)) = model.remove(&unique) {
                    log.remove(place).unwrap();
                }
                if number % 16 == 0 {
                    log = Log::open(Arc::clone(&file)).unwrap().0;
                }
            }
            let (_, mut found) = Log::open(file).unwrap();
            found.sort_by_key(|(.., text)| text.unique());
            let found: Vec<_> = found.into_iter().map(|(place, _, text)| (place, text)).collect();
            prop_assert_eq!(found, model.into_values().collect::<Vec<_>>());
        }
    }
}
