//! Encodes and decodes the table of chunks at the end of a blob, which lets later snapshots reuse
//! its chunks.
//!
//! A mount never reads it. The packer reads it to learn which chunks a blob already holds. The
//! index contains its digest, so that a forged table is detected.

use std::borrow::Cow;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::FormatError;
use crate::format::layout::{GROUP_RAW_LEN_MAX, GROUP_STORED_LEN_MAX};
use crate::ids::{ChunkDigest, DecodedDigest, Digest, GroupDigest};

/// The magic number, at the start of a table and at the end of a blob.
const TOC_MAGIC: [u8; 8] = *b"INLAYTOC";
/// The table version that this code writes. It also reads [`TOC_WITHOUT_DECODED`].
pub const TOC_VERSION: u32 = 2;
/// The table version whose groups have no digest of their decoded bytes.
const TOC_WITHOUT_DECODED: u32 = 1;
/// The maximum size of a table that is accepted, in bytes.
pub const TOC_LEN_MAX: u64 = 256 << 20;

const EXCLUSIVE: u32 = 1;
const UNKNOWN: Digest = Digest::from_bytes([0; 32]);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTocHeader {
    magic: [u8; 8],
    version: U32,
    groups: U32,
    chunks: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTocGroup {
    offset: U64,
    stored_len: U32,
    raw_len: U32,
    flags: U32,
    chunks: U32,
    digest: Digest,
}

/// A group since version 2.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDecodedTocGroup {
    group: RawTocGroup,
    /// Zero if unknown.
    decoded: Digest,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTocChunk {
    digest: Digest,
    offset: U32,
    len: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTocEnd {
    toc_len: U64,
    magic: [u8; 8],
}

/// A group of a blob, as listed in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocGroup {
    /// Offset of the compressed bytes in the blob.
    pub offset: u64,
    /// Length of the compressed bytes.
    pub stored_len: u32,
    /// Length of the decoded bytes.
    pub raw_len: u32,
    /// Whether all chunks in it come from one large file.
    pub exclusive: bool,
    /// BLAKE3 of the compressed bytes.
    pub digest: GroupDigest,
    /// BLAKE3 of the decoded bytes; `None` in a table of version 1.
    pub decoded: Option<DecodedDigest>,
    /// Its chunks, in order.
    pub chunks: Vec<TocChunk>,
}

/// A chunk of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TocChunk {
    /// BLAKE3 of its bytes.
    pub digest: ChunkDigest,
    /// Offset in the group's decoded bytes.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// Encodes the table for `groups`.
pub fn write_toc(groups: &[TocGroup]) -> Vec<u8> {
    let chunks: usize = groups.iter().map(|group| group.chunks.len()).sum();
    let mut out = Vec::with_capacity(40 + 88 * groups.len() + 40 * chunks);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let header = RawTocHeader {
        magic: TOC_MAGIC,
        version: TOC_VERSION.into(),
        groups: number(groups.len()).into(),
        chunks: (chunks as u64).into(),
    };
    out.extend_from_slice(header.as_bytes());
    for group in groups {
        let raw = RawTocGroup {
            offset: group.offset.into(),
            stored_len: group.stored_len.into(),
            raw_len: group.raw_len.into(),
            flags: if group.exclusive { EXCLUSIVE } else { 0 }.into(),
            chunks: number(group.chunks.len()).into(),
            digest: group.digest.0,
        };
        let decoded = group.decoded.map_or(UNKNOWN, |decoded| decoded.0);
        out.extend_from_slice(RawDecodedTocGroup { group: raw, decoded }.as_bytes());
    }
    for chunk in groups.iter().flat_map(|group| &group.chunks) {
        let raw = RawTocChunk {
            digest: chunk.digest.0,
            offset: chunk.offset.into(),
            len: chunk.len.into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }
    let toc_len = (out.len() + size_of::<RawTocEnd>()) as u64;
    out.extend_from_slice(RawTocEnd { toc_len: toc_len.into(), magic: TOC_MAGIC }.as_bytes());
    out
}

/// Verifies and decodes a table that starts at `toc_offset` in its blob and has the digest
/// `expected`.
pub fn read_toc(
    bytes: &[u8],
    toc_offset: u64,
    expected: Digest,
) -> Result<Vec<TocGroup>, FormatError> {
    let found = Digest::of(bytes);
    if found != expected {
        return Err(FormatError::Digest {
            what: "a blob's table of chunks".to_owned(),
            expected: expected.to_hex(),
            found: found.to_hex(),
        });
    }
    let corrupt = |at: usize| FormatError::corrupt("a blob's table of chunks", at);
    let (header, rest) = RawTocHeader::ref_from_prefix(bytes).map_err(|_| corrupt(0))?;
    if header.magic != TOC_MAGIC {
        return Err(corrupt(0));
    }
    let (raw_groups, rest) = raw_groups(header, rest)?;
    let chunk_count = usize::try_from(header.chunks.get()).map_err(|_| corrupt(2))?;
    let (mut raw_chunks, _) =
        <[RawTocChunk]>::ref_from_prefix_with_elems(rest, chunk_count).map_err(|_| corrupt(2))?;
    let mut groups = Vec::with_capacity(raw_groups.len());
    for (place, raw) in raw_groups.iter().enumerate() {
        let count = raw.group.chunks.get() as usize;
        let (own, after) = raw_chunks.split_at_checked(count).ok_or_else(|| corrupt(place))?;
        raw_chunks = after;
        groups.push(checked_group(raw, own, toc_offset).ok_or_else(|| corrupt(place))?);
    }
    Ok(groups)
}

/// Reads the groups of either version, and returns the bytes that follow.
fn raw_groups<'a>(
    header: &RawTocHeader,
    bytes: &'a [u8],
) -> Result<(Cow<'a, [RawDecodedTocGroup]>, &'a [u8]), FormatError> {
    let count = header.groups.get() as usize;
    let short = || FormatError::corrupt("a blob's table of chunks", 1);
    match header.version.get() {
        TOC_VERSION => {
            let (groups, rest) = <[RawDecodedTocGroup]>::ref_from_prefix_with_elems(bytes, count)
                .map_err(|_| short())?;
            Ok((Cow::Borrowed(groups), rest))
        }
        TOC_WITHOUT_DECODED => {
            let (groups, rest) =
                <[RawTocGroup]>::ref_from_prefix_with_elems(bytes, count).map_err(|_| short())?;
            let groups = groups.iter().map(|&group| RawDecodedTocGroup { group, decoded: UNKNOWN });
            Ok((Cow::Owned(groups.collect()), rest))
        }
        found => Err(FormatError::Version { found, known: TOC_VERSION }),
    }
}

fn checked_group(
    raw: &RawDecodedTocGroup,
    chunks: &[RawTocChunk],
    toc_offset: u64,
) -> Option<TocGroup> {
    let RawDecodedTocGroup { group: raw, decoded } = raw;
    let (stored_len, raw_len) = (raw.stored_len.get(), raw.raw_len.get());
    let end = raw.offset.get().checked_add(stored_len.into())?;
    let sizes = (1..=GROUP_STORED_LEN_MAX).contains(&stored_len)
        && (1..=GROUP_RAW_LEN_MAX).contains(&raw_len);
    if !sizes || end > toc_offset {
        return None;
    }
    let chunks = chunks
        .iter()
        .map(|chunk| {
            let (offset, len) = (chunk.offset.get(), chunk.len.get());
            let fits = offset.checked_add(len).is_some_and(|end| end <= raw_len) && len > 0;
            fits.then_some(TocChunk { digest: ChunkDigest(chunk.digest), offset, len })
        })
        .collect::<Option<_>>()?;
    Some(TocGroup {
        offset: raw.offset.get(),
        stored_len,
        raw_len,
        exclusive: raw.flags.get() & EXCLUSIVE != 0,
        digest: GroupDigest(raw.digest),
        decoded: Some(*decoded).filter(|found| *found != UNKNOWN).map(DecodedDigest),
        chunks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<TocGroup> {
        let chunk =
            |n: u8, offset, len| TocChunk { digest: ChunkDigest(Digest::of(&[n])), offset, len };
        vec![
            TocGroup {
                offset: 0,
                stored_len: 10,
                raw_len: 30,
                exclusive: false,
                digest: GroupDigest(Digest::of(b"a")),
                decoded: Some(DecodedDigest(Digest::of(b"decoded"))),
                chunks: vec![chunk(1, 0, 10), chunk(2, 10, 20)],
            },
            TocGroup {
                offset: 10,
                stored_len: 5,
                raw_len: 7,
                exclusive: true,
                digest: GroupDigest(Digest::of(b"b")),
                decoded: None,
                chunks: vec![chunk(3, 0, 7)],
            },
        ]
    }

    #[test]
    fn a_table_comes_back() {
        let bytes = write_toc(&sample());
        assert_eq!(read_toc(&bytes, 15, Digest::of(&bytes)).unwrap(), sample());
    }

    /// Encodes the table as version 1 did.
    fn write_first_version(groups: &[TocGroup]) -> Vec<u8> {
        let mut bytes = write_toc(groups);
        bytes[8] = 1;
        for place in (0..groups.len()).rev() {
            let at = size_of::<RawTocHeader>() + place * size_of::<RawDecodedTocGroup>();
            bytes.drain(at + size_of::<RawTocGroup>()..at + size_of::<RawDecodedTocGroup>());
        }
        bytes
    }

    #[test]
    fn a_table_of_the_first_version_lacks_only_the_digests_of_decoded_bytes() {
        let bytes = write_first_version(&sample());
        let mut expected = sample();
        for group in &mut expected {
            group.decoded = None;
        }
        assert_eq!(read_toc(&bytes, 15, Digest::of(&bytes)).unwrap(), expected);
        for version in [0, 3] {
            let mut bytes = bytes.clone();
            bytes[8] = version;
            let error = read_toc(&bytes, 15, Digest::of(&bytes)).unwrap_err();
            assert!(matches!(error, FormatError::Version { known: 2, .. }), "{error}");
        }
    }

    #[test]
    fn a_table_that_lies_is_refused() {
        let bytes = write_toc(&sample());
        assert!(read_toc(&bytes, 15, Digest::of(b"other")).is_err());
        assert!(read_toc(&bytes, 14, Digest::of(&bytes)).is_err(), "a group past the groups' end");
        for cut in 0..bytes.len() - 16 {
            let cut = &bytes[..cut];
            assert!(read_toc(cut, 15, Digest::of(cut)).is_err());
        }
        let mut long = sample();
        long[0].chunks[1].len = 21;
        let bytes = write_toc(&long);
        assert!(read_toc(&bytes, 15, Digest::of(&bytes)).is_err(), "a chunk past its group");
    }
}
