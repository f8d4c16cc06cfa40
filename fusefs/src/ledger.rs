//! What must outlive the process that serves the kernel: which slots there are, which large files
//! are open and how, and which backing files are registered.
//!
//! It is a memory file that the keeper holds, of records of 64 bytes, each with a check of its own.
//! A record is written before the answer that it is about goes out, so the next server knows at
//! least what the kernel was told. A record that does not check is taken for an empty one.

mod record;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create};
use rustix::io::{pread, pwrite};

pub(crate) use record::{Backing, Entry, Handle, Mode, SlotEntry, Visibility};
use record::{Header, RECORD_LEN, decode, decode_header, encode, encode_header};
pub(crate) use writer::writer;

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
    /// Another process writes it.
    #[error("another process serves the session")]
    Served,
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

    /// Whether a snapshot was ever attached, which takes a server that has answered the kernel.
    pub(crate) fn was_served(&self) -> bool {
        self.next_slot > 1
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

#[cfg(test)]
mod tests {
    use inlay_store::ids::Digest;
    use proptest::prelude::*;

    use super::*;
    use crate::kind::ConnectionKind;

    fn entry() -> impl Strategy<Value = Entry> {
        let kind = prop::sample::select(ConnectionKind::ALL.to_vec());
        prop_oneof![
            Just(Entry::Free),
            (any::<u32>(), kind.clone(), any::<bool>()).prop_map(|(slot, kind, seen)| {
                let visibility = if seen { Visibility::Attached } else { Visibility::Detached };
                Entry::Slot(SlotEntry { slot, kind, visibility })
            }),
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

        /// Whatever a hostile or dying writer left, it is read, and what can't be true is not there.
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

    #[test]
    fn a_slot_number_is_taken_once_whoever_takes_it() {
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
