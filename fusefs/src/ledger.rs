//! What must outlive the process that serves the kernel: which slots there are, which large files
//! are open and how, and which backing files are registered.
//!
//! It is a memory file that the keeper holds, of records of 64 bytes, each with a check of its own.
//! A record is written before the answer that it is about goes out, so the next server knows at
//! least what the kernel was told. A record that does not check is taken for an empty one.

mod record;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create};
use rustix::io::{pread, pwrite};

#[allow(unused_imports, reason = "passthrough is on its way")]
pub(crate) use record::Mode;
pub(crate) use record::{Backing, Entry, Handle, SlotEntry, Visibility};
use record::{Header, RECORD_LEN, decode, decode_header, encode, encode_header};

/// How many records there may be: 64 MiB.
const RECORDS_MAX: u32 = 1 << 20;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place(pub(crate) u32);

/// Why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The memory file can't be made, read or written.
    #[error("the ledger can't be accessed: {0}")]
    Io(#[from] io::Error),
    /// It is of another program, or of a version that this one does not know.
    #[error("the ledger is not one of this version of the program; stop the keeper and start anew")]
    Unknown,
    /// There is no room for another record.
    #[error("the ledger is full: too many large files are open")]
    Full,
    /// All slot numbers have been used.
    #[error("all slot numbers of this session have been used; stop the keeper and start anew")]
    NoSlots,
}

/// The records, in memory and in the file. One process at a time writes it.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: OwnedFd,
    next_slot: u32,
    /// How often each record's place was used: makes handles of one place differ.
    turns: Vec<u32>,
    free: Vec<Place>,
}

/// What the last server left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) slots: BTreeMap<u32, (Place, SlotEntry)>,
    pub(crate) handles: Vec<(Place, Handle)>,
    pub(crate) backings: Vec<(Place, Backing)>,
}

impl Ledger {
    /// Makes an empty one.
    pub(crate) fn create() -> Result<OwnedFd, LedgerError> {
        let file = memfd_create("inlay-ledger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(io::Error::from)?;
        // Nobody can make it shorter under a reader.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL).map_err(io::Error::from)?;
        write_all(&file, 0, &encode_header(Header { next_slot: 1 }))?;
        Ok(file)
    }

    /// Reads one that the keeper held.
    pub(crate) fn open(file: OwnedFd) -> Result<(Self, Left), LedgerError> {
        let len = u64::try_from(fstat(&file).map_err(io::Error::from)?.st_size).unwrap_or(0);
        let count = u32::try_from(len / RECORD_LEN as u64).unwrap_or(u32::MAX).min(RECORDS_MAX);
        let mut raw = [0; RECORD_LEN];
        read_all(&file, 0, &mut raw)?;
        let header = decode_header(&raw).ok_or(LedgerError::Unknown)?;
        let mut ledger =
            Self { file, next_slot: header.next_slot.max(1), turns: vec![0], free: Vec::new() };
        let mut left = Left::default();
        for place in (1..count).map(Place) {
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
        // The lowest places first, so that the file stays short.
        ledger.free.reverse();
        Ok((ledger, left))
    }

    /// Takes the next slot number, for ever.
    pub(crate) fn take_slot(&mut self, limit: u32) -> Result<u32, LedgerError> {
        let slot = self.next_slot;
        if slot >= limit {
            return Err(LedgerError::NoSlots);
        }
        write_all(&self.file, 0, &encode_header(Header { next_slot: slot + 1 }))?;
        self.next_slot = slot + 1;
        Ok(slot)
    }

    /// Writes a new record.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<Place, LedgerError> {
        let place = if let Some(place) = self.free.pop() {
            place
        } else {
            let next = u32::try_from(self.turns.len()).unwrap_or(u32::MAX);
            if next >= RECORDS_MAX {
                return Err(LedgerError::Full);
            }
            self.turns.push(0);
            Place(next)
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

    /// Writes another record in the place of one.
    pub(crate) fn set(&mut self, place: Place, entry: &Entry) -> Result<(), LedgerError> {
        self.write(place, self.turn(place), entry)
    }

    /// Clears a record.
    pub(crate) fn remove(&mut self, place: Place) -> Result<(), LedgerError> {
        self.write(place, self.turn(place), &Entry::Free)?;
        self.free.push(place);
        Ok(())
    }

    /// The number of an open file whose record is at `place`: never the same for two opens.
    pub(crate) fn handle_number(&self, place: Place) -> u64 {
        u64::from(self.turn(place)) << 32 | u64::from(place.0)
    }

    /// Where the record of the open file `number` is, if that is still its place.
    pub(crate) fn place_of(&self, number: u64) -> Option<Place> {
        let place = Place(u32::try_from(number & u64::from(u32::MAX)).ok()?);
        (place.0 != 0 && self.handle_number(place) == number).then_some(place)
    }

    /// The file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn turn(&self, place: Place) -> u32 {
        self.turns.get(place.0 as usize).copied().unwrap_or(0)
    }

    fn write(&mut self, place: Place, turn: u32, entry: &Entry) -> Result<(), LedgerError> {
        write_all(&self.file, place.offset(), &encode(turn, entry))?;
        if let Some(known) = self.turns.get_mut(place.0 as usize) {
            *known = turn;
        }
        Ok(())
    }
}

impl Place {
    fn offset(self) -> u64 {
        u64::from(self.0) * RECORD_LEN as u64
    }
}

/// Records are within one page each, so the kernel writes them whole even if the writer is killed.
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
