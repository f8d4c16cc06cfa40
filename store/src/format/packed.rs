//! Packs an index into compressed segments that a reader can verify one by one.
//!
//! The id of a snapshot is the plain BLAKE3 of its index. BLAKE3 is a tree: the chaining values of
//! aligned segments merge into exactly that hash. The packed form starts with a list of these
//! chaining values. A reader checks the list against the id once, and then each segment against the
//! list as it arrives: in any order, in parallel, or only the segments it needs.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::FormatError;
use crate::blake3_tree::{self, ChainingValue};
use crate::ids::{Digest, IndexDigest};

/// The magic number at the start of every packed index.
pub const PACKED_MAGIC: [u8; 8] = *b"INLAYPAK";
/// The version of the packed form that this code reads and writes.
pub const PACKED_VERSION: u32 = 1;
/// Length of a segment, in bytes of the index; the last may be shorter. A power of two, so that
/// segments are whole subtrees of BLAKE3.
pub const SEGMENT_LEN: u32 = 128 << 10;
/// The maximum length of an index, in bytes: enough for 16 million inodes with long names.
pub const INDEX_LEN_MAX: u64 = 8 << 30;

/// The trade-off between the size of a packed index and the time to compress it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Smallest reasonable size: zstd level 9.
    Thorough,
    /// Larger, but faster: zstd level 3.
    Quick,
}

impl Effort {
    const fn level(self) -> i32 {
        match self {
            Self::Thorough => 9,
            Self::Quick => 3,
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPackedHeader {
    magic: [u8; 8],
    version: U32,
    segment_len: U32,
    raw_len: U64,
    reserved: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSegment {
    chaining_value: [u8; 32],
    stored_len: U32,
}

/// Length of the fixed header before the list of segments, in bytes.
pub const PACKED_HEADER_LEN: u64 = size_of::<RawPackedHeader>() as u64;

/// The result of packing an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedIndex {
    /// The BLAKE3 of the index.
    pub digest: IndexDigest,
    /// Length of the index, in bytes.
    pub raw_len: u64,
    /// Length of the packed form, in bytes.
    pub packed_len: u64,
}

/// The list of segments of a packed index, verified against the id.
#[derive(Debug)]
pub struct SegmentTable {
    raw_len: u64,
    segments: Vec<(ChainingValue, u32)>,
}

/// Packs the index `raw` and appends it to `out`. Uses all cores.
pub fn pack_index(raw: &[u8], effort: Effort, out: &mut Vec<u8>) -> io::Result<PackedIndex> {
    let segments: Vec<&[u8]> = raw.chunks(SEGMENT_LEN as usize).collect();
    let packed = pack_segments(&segments, effort)?;
    let mut table = Vec::with_capacity(packed.len());
    for (chaining_value, stored) in &packed {
        let stored_len = u32::try_from(stored.len()).map_err(io::Error::other)?;
        table.push((*chaining_value, stored_len));
    }
    let raw_len = raw.len() as u64;
    let digest = if segments.len() <= 1 { Digest::of(raw) } else { root_of(raw_len, &table) };
    let header = RawPackedHeader {
        magic: PACKED_MAGIC,
        version: PACKED_VERSION.into(),
        segment_len: SEGMENT_LEN.into(),
        raw_len: raw_len.into(),
        reserved: 0.into(),
    };
    let before = out.len();
    out.extend_from_slice(header.as_bytes());
    for (chaining_value, stored_len) in &table {
        let raw = RawSegment { chaining_value: *chaining_value, stored_len: (*stored_len).into() };
        out.extend_from_slice(raw.as_bytes());
    }
    for (_, stored) in &packed {
        out.extend_from_slice(stored);
    }
    Ok(PackedIndex {
        digest: IndexDigest(digest),
        raw_len,
        packed_len: (out.len() - before) as u64,
    })
}

type PackedSegment = (ChainingValue, Vec<u8>);

/// Compresses and hashes each segment. Each thread repeatedly claims the next unclaimed segment.
fn pack_segments(segments: &[&[u8]], effort: Effort) -> io::Result<Vec<PackedSegment>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(segments.len());
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<Vec<(usize, PackedSegment)>> {
        let mut compressor = zstd::bulk::Compressor::new(effort.level())?;
        let mut done = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(segment) = segments.get(place) else { return Ok(done) };
            let value = chaining_value(place, segments.len(), segment);
            done.push((place, (value, compressor.compress(segment)?)));
        }
    };
    let mut packed = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut packed = work()?;
        for helper in helpers {
            let panicked = || io::Error::other("a thread that compresses has panicked");
            packed.extend(helper.join().map_err(|_| panicked())??);
        }
        Ok::<_, io::Error>(packed)
    })?;
    packed.sort_unstable_by_key(|(place, _)| *place);
    Ok(packed.into_iter().map(|(_, segment)| segment).collect())
}

impl SegmentTable {
    /// Reads the header and the list of segments at the start of `packed`, and verifies them
    /// against `id`.
    ///
    /// If `packed` is too short, fails with `FormatError::Truncated`, which states how many bytes
    /// are needed.
    pub fn parse(packed: &[u8], id: IndexDigest) -> Result<Self, FormatError> {
        let have = packed.len() as u64;
        let Ok((header, rest)) = RawPackedHeader::ref_from_prefix(packed) else {
            return Err(FormatError::Truncated { have, want: PACKED_HEADER_LEN });
        };
        if header.magic != PACKED_MAGIC {
            return Err(FormatError::NotAnIndex);
        }
        if header.version.get() != PACKED_VERSION {
            return Err(FormatError::Version {
                found: header.version.get(),
                known: PACKED_VERSION,
            });
        }
        if header.segment_len.get() != SEGMENT_LEN {
            return Err(FormatError::corrupt("length of a segment", header.segment_len.get()));
        }
        let raw_len = header.raw_len.get();
        if raw_len > INDEX_LEN_MAX {
            return Err(FormatError::TooLarge {
                what: "index",
                found: raw_len,
                limit: INDEX_LEN_MAX,
            });
        }
        if raw_len == 0 {
            return Err(FormatError::corrupt("an index of no bytes", 0u32));
        }
        let count = raw_len.div_ceil(u64::from(SEGMENT_LEN));
        let table_len = count * size_of::<RawSegment>() as u64;
        let want = PACKED_HEADER_LEN + table_len;
        let records = usize::try_from(count)
            .ok()
            .and_then(|count| <[RawSegment]>::ref_from_prefix_with_elems(rest, count).ok());
        let Some((records, _)) = records else {
            return Err(FormatError::Truncated { have, want });
        };
        let segments: Vec<_> =
            records.iter().map(|raw| (raw.chaining_value, raw.stored_len.get())).collect();
        let table = Self { raw_len, segments };
        if count > 1 {
            check(id, root_of(raw_len, &table.segments))?;
        } else if table.segments.first().is_some_and(|(value, _)| value != id.0.as_bytes()) {
            return Err(digest_error(id, "another"));
        }
        Ok(table)
    }

    /// Returns the length of the index, in bytes.
    pub fn raw_len(&self) -> u64 {
        self.raw_len
    }

    /// Returns the number of segments.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Returns the offset of the first segment in the packed form, in bytes.
    pub fn body_offset(&self) -> u64 {
        PACKED_HEADER_LEN + self.segments.len() as u64 * size_of::<RawSegment>() as u64
    }

    /// Returns the length of the packed form, in bytes.
    pub fn packed_len(&self) -> u64 {
        self.body_offset() + self.segments.iter().map(|(_, len)| u64::from(*len)).sum::<u64>()
    }

    /// Returns the length of segment `place` in the packed form, in bytes; 0 past the last.
    pub fn stored_len(&self, place: usize) -> u32 {
        self.segments.get(place).map_or(0, |(_, len)| *len)
    }

    /// Decompresses segment `place` from its stored bytes and verifies it.
    pub fn decode(&self, place: usize, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        let what = || format!("segment {place} of an index");
        let (expected, stored_len) = self
            .segments
            .get(place)
            .ok_or_else(|| FormatError::corrupt("no such segment", place))?;
        if stored.len() as u64 != u64::from(*stored_len) {
            return Err(FormatError::Truncated {
                have: stored.len() as u64,
                want: u64::from(*stored_len),
            });
        }
        let start = place as u64 * u64::from(SEGMENT_LEN);
        let len = usize::try_from((self.raw_len - start).min(u64::from(SEGMENT_LEN))).unwrap_or(0);
        let raw = zstd::bulk::decompress(stored, len)
            .map_err(|error| FormatError::Decode { what: what(), why: error.to_string() })?;
        let found = chaining_value(place, self.segments.len(), &raw);
        if raw.len() != len || found != *expected {
            return Err(FormatError::Digest {
                what: what(),
                expected: Digest::from_bytes(*expected).to_hex(),
                found: Digest::from_bytes(found).to_hex(),
            });
        }
        Ok(raw)
    }
}

/// Unpacks a packed index into `out` and verifies it against `id`. Returns the length of the index.
///
/// On error, `out` may hold a verified prefix of the index.
pub fn unpack_index(
    packed: &[u8],
    id: IndexDigest,
    out: &mut dyn Write,
) -> Result<u64, FormatError> {
    let table = SegmentTable::parse(packed, id)?;
    let mut rest = usize::try_from(table.body_offset())
        .ok()
        .and_then(|offset| packed.get(offset..))
        .unwrap_or(&[]);
    for place in 0..table.len() {
        let want = table.stored_len(place) as usize;
        let Some((stored, after)) = rest.split_at_checked(want) else {
            return Err(FormatError::Truncated {
                have: packed.len() as u64,
                want: table.packed_len(),
            });
        };
        let raw = table.decode(place, stored)?;
        out.write_all(&raw).map_err(|source| FormatError::Io { path: "index".into(), source })?;
        rest = after;
    }
    if !rest.is_empty() {
        return Err(FormatError::corrupt("bytes after the last segment", table.packed_len()));
    }
    Ok(table.raw_len)
}

/// Returns the digest of the index in `file`, which is hashed from its start.
pub fn digest_of(file: &mut (impl Read + Seek)) -> io::Result<IndexDigest> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = blake3::Hasher::new();
    io::copy(file, &mut hasher)?;
    Ok(IndexDigest(Digest::from_bytes(*hasher.finalize().as_bytes())))
}

fn chaining_value(place: usize, count: usize, segment: &[u8]) -> ChainingValue {
    blake3_tree::chaining_value(place as u64, count as u64, SEGMENT_LEN, segment)
}

/// Merges the chaining values of all segments into the hash of the index.
fn root_of(raw_len: u64, table: &[(ChainingValue, u32)]) -> Digest {
    let values: Vec<ChainingValue> = table.iter().map(|(value, _)| *value).collect();
    blake3_tree::root(raw_len, SEGMENT_LEN, &values)
}

fn check(id: IndexDigest, found: Digest) -> Result<(), FormatError> {
    if id.0 == found { Ok(()) } else { Err(digest_error(id, &found.to_hex())) }
}

fn digest_error(id: IndexDigest, found: &str) -> FormatError {
    FormatError::Digest {
        what: "the index".to_owned(),
        expected: id.to_string(),
        found: found.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0] & 0x3f).collect()
    }

    #[test]
    fn the_digest_is_the_plain_blake3_of_the_index() {
        let unit = SEGMENT_LEN as usize;
        for len in [1, 1024, unit - 1, unit, unit + 1, 2 * unit, 3 * unit + 5, 9 * unit + 1000] {
            let raw = sample(len);
            let mut packed = Vec::new();
            let info = pack_index(&raw, Effort::Thorough, &mut packed).unwrap();
            assert_eq!(info.digest.0, Digest::of(&raw), "{len} bytes");
            let mut back = Vec::new();
            unpack_index(&packed, info.digest, &mut back).unwrap();
            assert!(back == raw, "{len} bytes");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_changed_byte_passes(len in 1usize..400_000, at in any::<prop::sample::Index>(), flip in 1u8..) {
            let raw = sample(len);
            let mut packed = Vec::new();
            let info = pack_index(&raw, Effort::Thorough, &mut packed).unwrap();
            let at = at.index(packed.len());
            packed[at] ^= flip;
            let mut out = Vec::new();
            match unpack_index(&packed, info.digest, &mut out) {
                // Flips in reserved bytes, or in bits that zstd ignores, go unnoticed; the index
                // must be intact.
                Ok(_) => prop_assert!(out == raw),
                Err(_) => prop_assert!(raw.starts_with(&out)),
            }
        }

        #[test]
        fn no_shorter_one_passes(len in 1usize..300_000, cut in any::<prop::sample::Index>()) {
            let raw = sample(len);
            let mut packed = Vec::new();
            let info = pack_index(&raw, Effort::Thorough, &mut packed).unwrap();
            let cut = cut.index(packed.len());
            prop_assert!(unpack_index(&packed[..cut], info.digest, &mut Vec::new()).is_err());
        }
    }
}
