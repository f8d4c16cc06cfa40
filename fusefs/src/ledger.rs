//! Persists the state that must outlive the server process: slots, open large files with their
//! mode, and registered backing files.
//!
//! The ledger is a memfd held by the keeper, with checksummed records of 64 bytes. A record is
//! written before the reply it belongs to, so the next server knows at least what the kernel knows.
//! A record with a wrong checksum counts as free.

mod record;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek};
use rustix::io::{pread, pwrite};

pub use record::VERSION;
pub(crate) use record::{Backing, Entry, Handle, Mode, SlotEntry, Visibility};
use record::{Header, RECORD_LEN, decode, decode_header, encode, encode_header};
pub(crate) use writer::writer;

/// Maximum number of records, which take 64 MiB.
const RECORDS_MAX: u32 = 1 << 20;

/// Index of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LedgerPosition(pub(crate) u32);

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The memfd cannot be created, read or written.
    #[error("the ledger can't be accessed: {0}")]
    Io(#[from] io::Error),
    /// Written by another program or an unknown version.
    #[error("the ledger is not one of this version of the program; stop the keeper and start anew")]
    Unknown,
    /// No free record is left.
    #[error("the ledger is full: too many large files are open")]
    Full,
    /// All slot numbers have been used.
    #[error("all slot numbers of this session have been used; stop the keeper and start anew")]
    NoSlots,
    /// No free range of inode numbers is left below 2^53.
    #[error("all inode numbers are in use; unmount something")]
    NoNumbers,
    /// Another process holds the writer lock.
    #[error("another process serves the session")]
    Served,
}

/// The records, in memory and in the file. Only one process at a time writes them.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Shared with [`crate::inflight`], which stores its records behind these.
    file: Arc<OwnedFd>,
    next_slot: u32,
    /// How often each record was reused: distinguishes the file handles of one record.
    turns: Vec<u32>,
    free: Vec<LedgerPosition>,
}

/// State left by the previous server.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) slots: BTreeMap<u32, (LedgerPosition, SlotEntry)>,
    pub(crate) handles: Vec<(LedgerPosition, Handle)>,
    pub(crate) backings: Vec<(LedgerPosition, Backing)>,
}

impl Ledger {
    /// Creates an empty ledger.
    pub(crate) fn create() -> Result<OwnedFd, LedgerError> {
        let file = memfd_create("inlay-ledger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(io::Error::from)?;
        // Sealed against shrinking, so that readers cannot be truncated.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL).map_err(io::Error::from)?;
        write_all(&file, 0, &encode_header(Header { next_slot: 1 }))?;
        Ok(file)
    }

    /// Opens a ledger held by the keeper.
    pub(crate) fn open(file: OwnedFd) -> Result<(Self, Left), LedgerError> {
        // Records are allocated in order, so the first hole comes after the last record.
        let len = seek(&file, SeekFrom::Hole(0)).map_err(io::Error::from)?;
        let count = u32::try_from(len / RECORD_LEN as u64).unwrap_or(u32::MAX).min(RECORDS_MAX);
        let mut raw = [0; RECORD_LEN];
        read_all(&file, 0, &mut raw)?;
        let header = decode_header(&raw).ok_or(LedgerError::Unknown)?;
        let mut ledger = Self {
            file: Arc::new(file),
            next_slot: header.next_slot.max(1),
            turns: vec![0],
            free: Vec::new(),
        };
        let mut left = Left::default();
        for place in (1..count).map(LedgerPosition) {
            read_all(&ledger.file, place.offset(), &mut raw)?;
            let (turn, entry) = decode(&raw);
            ledger.turns.push(turn);
            match entry {
                Entry::Free => ledger.free.push(place),
                Entry::Slot(slot) => {
                    ledger.next_slot = ledger.next_slot.max(slot.slot.saturating_add(1));
                    left.slots.insert(slot.slot, (place, slot));
                }
                Entry::Handle(handle) => left.handles.push((place, handle)),
                Entry::Backing(backing) => left.backings.push((place, backing)),
            }
        }
        // Reuse the lowest records first, to keep the file short.
        ledger.free.reverse();
        Ok((ledger, left))
    }

    /// Allocates the next slot number, which is never reused.
    pub(crate) fn take_slot(&mut self, limit: u32) -> Result<u32, LedgerError> {
        let slot = self.next_slot;
        if slot >= limit {
            return Err(LedgerError::NoSlots);
        }
        write_all(&self.file, 0, &encode_header(Header { next_slot: slot + 1 }))?;
        self.next_slot = slot + 1;
        Ok(slot)
    }

    /// Returns whether a snapshot was ever attached, i.e. whether a server has answered the kernel.
    pub(crate) fn was_served(&self) -> bool {
        self.next_slot > 1
    }

    /// Writes a new record.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<LedgerPosition, LedgerError> {
        let place = if let Some(place) = self.free.pop() {
            place
        } else {
            let next = u32::try_from(self.turns.len()).unwrap_or(u32::MAX);
            if next >= RECORDS_MAX {
                return Err(LedgerError::Full);
            }
            self.turns.push(0);
            LedgerPosition(next)
        };
        let turn = self.turn(place).wrapping_add(1);
        match self.write(place, turn, entry) {
            Ok(()) => Ok(place),
            Err(error) => {
                self.free.push(place);
                Err(error)
            }
        }
    }

    /// Overwrites a record.
    pub(crate) fn set(&mut self, place: LedgerPosition, entry: &Entry) -> Result<(), LedgerError> {
        self.write(place, self.turn(place), entry)
    }

    /// Frees a record.
    pub(crate) fn remove(&mut self, place: LedgerPosition) -> Result<(), LedgerError> {
        self.write(place, self.turn(place), &Entry::Free)?;
        self.free.push(place);
        Ok(())
    }

    /// Returns the file handle of the open file recorded at `place`. Never the same for two opens.
    pub(crate) fn handle_number(&self, place: LedgerPosition) -> u64 {
        u64::from(self.turn(place)) << 32 | u64::from(place.0)
    }

    /// Returns the record of the file handle `number`, if it is still current.
    pub(crate) fn place_of(&self, number: u64) -> Option<LedgerPosition> {
        let place = LedgerPosition(u32::try_from(number & u64::from(u32::MAX)).ok()?);
        (place.0 != 0 && self.handle_number(place) == number).then_some(place)
    }

    /// Returns the memfd.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns the memfd for records stored behind the ledger's. Only the last owner may close a
    /// descriptor of it: closing any of them drops the writer lock.
    pub(crate) fn shared_file(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }

    fn turn(&self, place: LedgerPosition) -> u32 {
        self.turns.get(place.0 as usize).copied().unwrap_or(0)
    }

    fn write(
        &mut self,
        place: LedgerPosition,
        turn: u32,
        entry: &Entry,
    ) -> Result<(), LedgerError> {
        write_all(&self.file, place.offset(), &encode(turn, entry))?;
        if let Some(known) = self.turns.get_mut(place.0 as usize) {
            *known = turn;
        }
        Ok(())
    }
}

impl LedgerPosition {
    fn offset(self) -> u64 {
        u64::from(self.0) * RECORD_LEN as u64
    }
}

/// Records lie within one page each, so the kernel writes them whole even if the writer is killed.
fn write_all(file: impl AsFd, at: u64, bytes: &[u8]) -> io::Result<()> {
    match pwrite(file, bytes, at)? {
        len if len == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn read_all(file: impl AsFd, at: u64, bytes: &mut [u8; RECORD_LEN]) -> io::Result<()> {
    match pread(file, &mut bytes[..], at)? {
        RECORD_LEN => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use inlay_store::ids::Digest;
    use proptest::prelude::*;

    use super::*;
    use crate::kind::ConnectionKind;
    use crate::numbers::Numbers;

    fn entry() -> impl Strategy<Value = Entry> {
        let kind = prop::sample::select(ConnectionKind::ALL.to_vec());
        prop_oneof![
            Just(Entry::Free),
            (any::<u32>(), kind.clone(), any::<bool>(), any::<Option<(u64, u32)>>()).prop_map(
                |(slot, kind, seen, numbers)| {
                    let visibility = if seen { Visibility::Attached } else { Visibility::Detached };
                    let numbers = numbers.map_or(Numbers::OfTheKernel, |(first, count)| {
                        Numbers::From { first, count }
                    });
                    Entry::Slot(SlotEntry { slot, kind, visibility, numbers })
                }
            ),
            (kind.clone(), any::<u64>(), any::<u64>(), any::<Option<u32>>()).prop_map(
                |(kind, inode, unique, id)| {
                    let mode = id.map_or(Mode::Plain, Mode::Passthrough);
                    Entry::Handle(Handle { kind, inode, unique, mode })
                }
            ),
            (kind, any::<u64>(), any::<u32>(), any::<[u8; 32]>()).prop_map(
                |(kind, inode, id, content)| {
                    let content = Digest::from_bytes(content);
                    Entry::Backing(Backing { kind, inode, id, content })
                }
            ),
        ]
    }

    fn all(left: &Left) -> usize {
        left.slots.len() + left.handles.len() + left.backings.len()
    }

    proptest! {
        #[test]
        fn records_go_there_and_back(turn in any::<u32>(), entry in entry()) {
            prop_assert_eq!(decode(&encode(turn, &entry)), (turn, entry));
        }

        /// Any bytes left by a hostile or dying writer are read, and impossible records are
        /// ignored.
        #[test]
        fn any_bytes_are_a_ledger_or_an_error(
            entries in prop::collection::vec(entry(), 0..8),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let file = Ledger::create().unwrap();
            let (mut ledger, _) = Ledger::open(file.try_clone().unwrap()).unwrap();
            for entry in &entries {
                ledger.add(entry).unwrap();
            }
            let mut bytes = vec![0; 64 * (entries.len() + 1)];
            pread(&file, &mut bytes[..], 0).unwrap();
            for (place, value) in &damage {
                let at = place.index(bytes.len());
                bytes[at] = *value;
            }
            let other = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
            let kept = cut.index(bytes.len() + 1);
            pwrite(&other, &bytes[..kept], 0).unwrap();
            if let Ok((_, left)) = Ledger::open(other) {
                prop_assert!(all(&left) <= entries.len());
            }
        }
    }

    /// This version may adopt a slot attached by an earlier one.
    #[test]
    fn a_slot_record_of_the_version_before_keeps_the_kernels_numbers() {
        let visibility = Visibility::Attached;
        let numbers = Numbers::OfTheKernel;
        let entry = SlotEntry { slot: 7, kind: ConnectionKind::Plain, visibility, numbers };
        let record = encode(3, &Entry::Slot(entry));
        // Kind, turn, slot, visibility, then zeros.
        assert_eq!(record[8..16], [1, 4, 0, 0, 3, 0, 0, 0]);
        assert_eq!(record[16..20], 7_u32.to_ne_bytes());
        assert!(record[20..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn slot_numbers_are_not_reused_after_reopening() {
        let file = Ledger::create().unwrap();
        let open = || Ledger::open(file.try_clone().unwrap()).unwrap().0;
        let (mut first, limit) = (open(), 4);
        assert_eq!(first.take_slot(limit).unwrap(), 1);
        drop(first);
        let mut second = open();
        assert_eq!(second.take_slot(limit).unwrap(), 2);
        assert_eq!(second.take_slot(limit).unwrap(), 3);
        assert!(matches!(second.take_slot(limit), Err(LedgerError::NoSlots)));
    }

    #[test]
    fn a_handle_of_a_place_that_is_used_again_is_another() {
        let file = Ledger::create().unwrap();
        let (mut ledger, _) = Ledger::open(file.try_clone().unwrap()).unwrap();
        let kind = ConnectionKind::General;
        let entry = Entry::Handle(Handle { kind, inode: 2, unique: 4, mode: Mode::Plain });
        let place = ledger.add(&entry).unwrap();
        let old = ledger.handle_number(place);
        ledger.remove(place).unwrap();
        let (mut next, _) = Ledger::open(file).unwrap();
        assert_eq!(next.add(&entry).unwrap(), place);
        assert_eq!(next.place_of(old), None);
        assert_eq!(next.place_of(next.handle_number(place)), Some(place));
        assert_eq!(next.place_of(0), None);
    }
}
