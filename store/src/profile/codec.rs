//! Encodes and decodes profiles, as drawn in `docs/FORMAT.md`.

use std::collections::HashSet;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zstd::zstd_safe;

use super::error::ProfileError;
use super::label::ProfileLabel;
use super::model::{ENTRIES_MAX, Entry, Profile, RUNS_MAX, Seen, UnitSet};
use crate::format::GroupIdx;
use crate::ids::{Digest, IndexDigest, Kind, SnapshotId};

/// The maximum size of an encoded profile, in bytes.
pub const ENCODED_LEN_MAX: u64 = 1 << 20;
/// The version that this code writes. It also reads [`VERSION_WITHOUT_UNITS`].
pub const VERSION: u32 = 2;
/// The version whose entries have no units: each stands for its whole group.
const VERSION_WITHOUT_UNITS: u32 = 1;

const MAGIC: [u8; 8] = *b"INLAYPRF";
const LEVEL: i32 = 3;
const PLAIN: u32 = 0;
const ZSTD: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawProfileHeader {
    magic: [u8; 8],
    version: U32,
    /// `Kind::code`.
    kind: U32,
    index: Digest,
    /// Padded with zeros.
    label: [u8; ProfileLabel::LEN_MAX],
    runs: U32,
    entries: U32,
    /// `PLAIN` or `ZSTD`.
    stored: U32,
    /// The number of all runs merged so far, modulo 2³²; zero in version 1.
    merged: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    group: U32,
    at_ms: U32,
    seen: U16,
    /// `UnitSet::bits`; zero in version 1.
    units: U16,
}

const _: () = {
    assert!(size_of::<RawProfileHeader>() == 128);
    assert!(size_of::<RawEntry>() == 12);
    let len =
        size_of::<RawProfileHeader>() + ENTRIES_MAX * size_of::<RawEntry>() + size_of::<Digest>();
    assert!(len as u64 <= ENCODED_LEN_MAX);
};

impl Profile {
    /// Encodes the profile into at most [`ENCODED_LEN_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut entries = Vec::with_capacity(self.entries.len() * size_of::<RawEntry>());
        for entry in &self.entries {
            let raw = RawEntry {
                group: entry.group.0.into(),
                at_ms: entry.at_ms.into(),
                seen: entry.seen.0.into(),
                units: entry.units.bits().into(),
            };
            entries.extend_from_slice(raw.as_bytes());
        }
        let packed = zstd::bulk::compress(&entries, LEVEL).ok();
        let (stored, body) = match packed.filter(|packed| packed.len() < entries.len()) {
            Some(packed) => (ZSTD, packed),
            None => (PLAIN, entries),
        };
        let mut label = [0; ProfileLabel::LEN_MAX];
        for (to, from) in label.iter_mut().zip(self.label.as_str().bytes()) {
            *to = from;
        }
        let header = RawProfileHeader {
            magic: MAGIC,
            version: VERSION.into(),
            kind: self.snapshot.kind.code().into(),
            index: self.snapshot.index.0,
            label,
            runs: self.runs.into(),
            entries: u32::try_from(self.entries.len()).unwrap_or(u32::MAX).into(),
            stored: stored.into(),
            merged: self.merged.into(),
        };
        let mut out = [header.as_bytes(), &body].concat();
        out.extend_from_slice(Digest::of(&out).as_bytes());
        out
    }

    /// Decodes and checks a stored profile. Does not check that its groups exist in the index: call
    /// [`Self::retain_groups`] for that.
    ///
    /// Never uses more memory than the largest valid profile, even for hostile bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProfileError> {
        let damaged = ProfileError::Damaged;
        if bytes.len() as u64 > ENCODED_LEN_MAX {
            return Err(ProfileError::TooLong { len: bytes.len() as u64 });
        }
        if !bytes.starts_with(&MAGIC) {
            return Err(ProfileError::NotAProfile);
        }
        let short = damaged("it is cut short");
        // Check the version before the digest, because the position of the digest depends on it.
        let version = bytes.get(MAGIC.len()..).map(U32::read_from_prefix);
        let Some(Ok((version, _))) = version else { return Err(short) };
        if !(VERSION_WITHOUT_UNITS..=VERSION).contains(&version.get()) {
            return Err(ProfileError::Version { found: version.get() });
        }
        let Ok((content, digest)) = Digest::ref_from_suffix(bytes) else { return Err(short) };
        if Digest::of(content) != *digest {
            return Err(ProfileError::Digest);
        }
        let Ok((header, body)) = RawProfileHeader::ref_from_prefix(content) else {
            return Err(short);
        };
        let kind = Kind::from_code(header.kind.get()).ok_or(damaged("unknown kind of snapshot"))?;
        let label = label(&header.label).ok_or(damaged("its label"))?;
        let runs = header.runs.get();
        if runs > RUNS_MAX {
            return Err(damaged("more runs than are remembered"));
        }
        let merged = header.merged.get();
        if version.get() == VERSION_WITHOUT_UNITS && merged != 0 {
            return Err(damaged("a field that has to be zero"));
        }
        let entries = entries(header, body)?;
        let snapshot = SnapshotId { kind, index: IndexDigest(header.index) };
        Ok(Self { snapshot, label, runs, merged, entries })
    }
}

fn label(padded: &[u8; ProfileLabel::LEN_MAX]) -> Option<ProfileLabel> {
    let len = padded.iter().position(|byte| *byte == 0).unwrap_or(padded.len());
    let (label, rest) = padded.split_at_checked(len)?;
    if rest.iter().any(|byte| *byte != 0) {
        return None;
    }
    std::str::from_utf8(label).ok()?.parse().ok()
}

fn entries(header: &RawProfileHeader, body: &[u8]) -> Result<Vec<Entry>, ProfileError> {
    let damaged = ProfileError::Damaged;
    let count = header.entries.get() as usize;
    if count > ENTRIES_MAX {
        return Err(damaged("more entries than a profile has"));
    }
    let len = count * size_of::<RawEntry>();
    let unpacked;
    let plain = match header.stored.get() {
        PLAIN => body,
        ZSTD => {
            unpacked = unpack(body, len)?;
            &unpacked
        }
        _ => return Err(damaged("its entries are stored in an unknown way")),
    };
    let raw = <[RawEntry]>::ref_from_bytes_with_elems(plain, count)
        .map_err(|_| damaged("as many entries as it says are not there"))?;
    // The bits of the runs that have happened.
    let known = u16::MAX.checked_shr(RUNS_MAX.saturating_sub(header.runs.get())).unwrap_or(0);
    let mut met = HashSet::with_capacity(count);
    raw.iter()
        .map(|raw| {
            let (group, seen) = (GroupIdx(raw.group.get()), raw.seen.get());
            if seen == 0 || seen & !known != 0 {
                return Err(damaged("a group that was touched in no run, or before the first"));
            }
            let units = UnitSet::from_bits(raw.units.get());
            let units = match header.version.get() {
                VERSION_WITHOUT_UNITS if units.is_empty() => UnitSet::ALL,
                VERSION_WITHOUT_UNITS => return Err(damaged("a field that has to be zero")),
                _ if units.is_empty() => return Err(damaged("a group without a touched unit")),
                _ => units,
            };
            if !met.insert(group) {
                return Err(damaged("a group stands in it twice"));
            }
            Ok(Entry { group, at_ms: raw.at_ms.get(), seen: Seen(seen), units })
        })
        .collect()
}

/// Decompresses exactly one frame of exactly `len` decoded bytes.
fn unpack(frame: &[u8], len: usize) -> Result<Vec<u8>, ProfileError> {
    let wrong = ProfileError::Damaged("its entries can't be decompressed");
    if zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
        return Err(wrong);
    }
    zstd::bulk::decompress(frame, len).ok().filter(|plain| plain.len() == len).ok_or(wrong)
}
