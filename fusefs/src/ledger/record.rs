//! Encodes the ledger's records: 64 bytes each, in native byte order, starting with an eight-byte
//! checksum of the rest.

use inlay_store::ids::Digest;

use crate::kind::ConnectionKind;
use crate::numbers::Numbers;

pub(crate) const RECORD_LEN: usize = 64;
const MAGIC: &[u8; 8] = b"inlayldg";
/// The version written, and the only one accepted.
pub const VERSION: u32 = 1;

/// The first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) next_slot: u32,
}

/// Contents of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The record is free.
    Free,
    /// A slot is in use.
    Slot(SlotEntry),
    /// A large file is open.
    Handle(Handle),
    /// A backing file is registered.
    Backing(Backing),
}

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotEntry {
    pub(crate) slot: u32,
    pub(crate) kind: ConnectionKind,
    pub(crate) visibility: Visibility,
    pub(crate) numbers: Numbers,
}

/// Whether a slot can be looked up by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// It is listed in the root directory.
    Attached,
    /// It is not listed, but may still be in use.
    Detached,
}

/// How the kernel has a large file open. All concurrent opens of an inode use the same mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// Reads go to the server.
    Plain,
    /// Reads go to the backing file with this ID.
    Passthrough(u32),
}

/// An open large file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) kind: ConnectionKind,
    /// Node ID.
    pub(crate) inode: u64,
    /// Number of the OPEN request; a resent request has the same number.
    pub(crate) unique: u64,
    pub(crate) mode: Mode,
}

/// A registered backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) kind: ConnectionKind,
    pub(crate) inode: u64,
    pub(crate) id: u32,
    pub(crate) content: Digest,
}

/// Cursor over the fields of a record.
struct Fields {
    bytes: [u8; RECORD_LEN],
    at: usize,
}

impl Fields {
    fn new() -> Self {
        Self { bytes: [0; RECORD_LEN], at: 8 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        // In range: every record's fields are shorter than 64 bytes; a test writes each.
        if let Some(place) = self.bytes.get_mut(self.at..self.at + field.len()) {
            place.copy_from_slice(field);
        }
        self.at += field.len();
        self
    }

    fn done(mut self) -> [u8; RECORD_LEN] {
        let sum = check(&self.bytes);
        if let Some(place) = self.bytes.get_mut(..8) {
            place.copy_from_slice(&sum);
        }
        self.bytes
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        if let Some(bytes) = self.bytes.get(self.at..self.at + N) {
            field.copy_from_slice(bytes);
        }
        self.at += N;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }
}

fn check(record: &[u8; RECORD_LEN]) -> [u8; 8] {
    let mut sum = [0; 8];
    let digest = Digest::of(record.get(8..).unwrap_or_default());
    sum.copy_from_slice(digest.as_bytes().get(..8).unwrap_or(&[0; 8]));
    sum
}

/// Returns the fields if the checksum matches.
fn checked(bytes: &[u8; RECORD_LEN]) -> Option<Fields> {
    (bytes.get(..8)? == check(bytes)).then_some(Fields { bytes: *bytes, at: 8 })
}

pub(super) fn encode_header(header: Header) -> [u8; RECORD_LEN] {
    Fields::new().put(MAGIC).put(&VERSION.to_ne_bytes()).put(&header.next_slot.to_ne_bytes()).done()
}

pub(super) fn decode_header(bytes: &[u8; RECORD_LEN]) -> Option<Header> {
    let mut fields = checked(bytes)?;
    if fields.take::<8>() != *MAGIC || fields.u32() != VERSION {
        return None;
    }
    Some(Header { next_slot: fields.u32() })
}

const FREE: u8 = 0;
const SLOT: u8 = 1;
const PLAIN: u8 = 2;
const PASSTHROUGH: u8 = 3;
const BACKING: u8 = 4;

/// Encodes `entry`, in a record reused for the `turn`-th time.
pub(super) fn encode(turn: u32, entry: &Entry) -> [u8; RECORD_LEN] {
    let head = |tag: u8, kind: u8| Fields::new().put(&[tag, kind, 0, 0]).put(&turn.to_ne_bytes());
    match entry {
        Entry::Free => head(FREE, 0).done(),
        Entry::Slot(SlotEntry { slot, kind, visibility, numbers }) => {
            let (numbered, first, count) = match numbers {
                Numbers::OfTheKernel => (0, 0, 0),
                Numbers::From { first, count } => (1, *first, *count),
            };
            head(SLOT, kind.code())
                .put(&slot.to_ne_bytes())
                .put(&[u8::from(*visibility == Visibility::Detached), numbered])
                .put(&first.to_ne_bytes())
                .put(&count.to_ne_bytes())
                .done()
        }
        Entry::Handle(Handle { kind, inode, unique, mode }) => {
            let (tag, id) = match mode {
                Mode::Plain => (PLAIN, 0),
                Mode::Passthrough(id) => (PASSTHROUGH, *id),
            };
            head(tag, kind.code())
                .put(&inode.to_ne_bytes())
                .put(&unique.to_ne_bytes())
                .put(&id.to_ne_bytes())
                .done()
        }
        Entry::Backing(Backing { kind, inode, id, content }) => head(BACKING, kind.code())
            .put(&inode.to_ne_bytes())
            .put(&id.to_ne_bytes())
            .put(content.as_bytes())
            .done(),
    }
}

/// Decodes a record and its reuse count. Invalid records count as free.
pub(super) fn decode(bytes: &[u8; RECORD_LEN]) -> (u32, Entry) {
    let Some(mut fields) = checked(bytes) else { return (0, Entry::Free) };
    let [tag, kind, ..] = fields.take::<4>();
    let turn = fields.u32();
    let Some(kind) = ConnectionKind::from_code(kind) else { return (turn, Entry::Free) };
    let entry = match tag {
        SLOT => Entry::Slot(SlotEntry {
            slot: fields.u32(),
            kind,
            visibility: match fields.byte() {
                0 => Visibility::Attached,
                _ => Visibility::Detached,
            },
            // A version that had one number for both wrote zeros from here on.
            numbers: match (fields.byte(), fields.u64(), fields.u32()) {
                (0, ..) => Numbers::OfTheKernel,
                (_, first, count) => Numbers::From { first, count },
            },
        }),
        PLAIN | PASSTHROUGH => {
            let (inode, unique, id) = (fields.u64(), fields.u64(), fields.u32());
            let mode = if tag == PLAIN { Mode::Plain } else { Mode::Passthrough(id) };
            Entry::Handle(Handle { kind, inode, unique, mode })
        }
        BACKING => Entry::Backing(Backing {
            kind,
            inode: fields.u64(),
            id: fields.u32(),
            content: Digest::from_bytes(fields.take()),
        }),
        _ => Entry::Free,
    };
    (turn, entry)
}
