//! Packs files one after another, and returns where their bytes are stored.
//!
//! A tiny file is stored in the index. A small file is one chunk, appended to the same group as its
//! neighbours, so that one fetch returns a neighbourhood. A large file is cut at content-defined
//! boundaries (FastCDC: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking
//! Approach for Data Deduplication", USENIX ATC 2016), and its chunks fill groups of their own, in
//! order, so that the concatenated groups are the file. A chunk that is already known is not stored
//! again.

use std::io::{self, Read};
use std::ops::Range;

use fastcdc::v2020::FastCDC;

use super::compress::{CompressJob, PackedGroup, Pipeline};
use super::content::{Content, PackedExtent, Pieces};
use super::known_chunks::{KnownChunks, Place};
use super::options::PackOptions;
use super::toc::TocChunk;
use super::{BlobStore, FileSink, PackError};
use crate::format::Blob;
use crate::format::layout::{FILE_LEN_MAX, GROUP_RAW_LEN_MAX};
use crate::ids::{ChunkDigest, Digest};

/// Bytes of a large file read at a time.
const READ_LEN: usize = 4 << 20;

/// Statistics of packing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackStats {
    /// Bytes of file data added.
    pub content_bytes: u64,
    /// Of these, bytes in chunks that were already known.
    pub known_bytes: u64,
    /// Size of the blobs created, in bytes.
    pub stored_bytes: u64,
    /// Number of blobs created.
    pub blobs: u64,
}

/// All groups that the packed files refer to.
#[derive(Debug, Default)]
pub struct PackedGroups {
    groups: Vec<Option<PackedGroup>>,
    blobs: Vec<Blob>,
    /// Statistics of packing.
    pub stats: PackStats,
}

impl PackedGroups {
    /// Returns the group that the packer numbered `number`.
    pub fn group(&self, number: u32) -> Option<PackedGroup> {
        self.groups.get(number as usize).copied().flatten()
    }

    /// Returns the blob that the packer numbered `number`.
    pub fn blob(&self, number: u32) -> Option<Blob> {
        self.blobs.get(number as usize).copied()
    }
}

/// A group that is being filled.
#[derive(Default)]
struct OpenGroup {
    number: Option<u32>,
    raw: Vec<u8>,
    chunks: Vec<TocChunk>,
}

/// Packs files into blobs, one file at a time. Compression runs on background threads.
pub struct Packer {
    options: PackOptions,
    pub(super) known: KnownChunks,
    pipeline: Pipeline,
    small: OpenGroup,
    large: OpenGroup,
    /// By group number: the foreign group, or `None` for a group that this packer fills.
    foreign: Vec<Option<u32>>,
    /// Sequence number of the next group to close.
    sequence: u64,
    /// The read buffer for large files, kept to reuse its allocation.
    window: Vec<u8>,
    stats: PackStats,
}

impl Packer {
    /// Creates a packer that writes its blobs to `store`.
    pub fn new(
        options: PackOptions,
        known: KnownChunks,
        store: Box<dyn BlobStore>,
    ) -> Result<Self, PackError> {
        let longest = options.group_len + options.chunk_len.max.max(small_max(&options));
        if longest > GROUP_RAW_LEN_MAX as usize {
            return Err(PackError::Limit {
                what: "bytes in a group, by its options",
                limit: GROUP_RAW_LEN_MAX.into(),
            });
        }
        let pipeline = Pipeline::start(&options, store)?;
        Ok(Self {
            options,
            known,
            pipeline,
            small: OpenGroup::default(),
            large: OpenGroup::default(),
            foreign: Vec::new(),
            sequence: 0,
            window: Vec::new(),
            stats: PackStats::default(),
        })
    }

    /// Closes open groups and blocks until every blob is stored.
    pub fn finish(mut self) -> Result<PackedGroups, PackError> {
        let flushed = self.close(Lane::Large).and_then(|()| self.close(Lane::Small));
        let assembled = self.pipeline.finish()?;
        flushed?;
        let mut groups: Vec<Option<PackedGroup>> = vec![None; self.foreign.len()];
        for (number, group) in assembled.groups {
            if let Some(place) = groups.get_mut(number as usize) {
                *place = Some(group);
            }
        }
        let mut blobs = assembled.blobs;
        let stats = PackStats {
            stored_bytes: assembled.stored_bytes,
            blobs: blobs.len() as u64,
            ..self.stats
        };
        let first_foreign = u32::try_from(blobs.len()).unwrap_or(u32::MAX);
        for (place, foreign) in groups.iter_mut().zip(&self.foreign) {
            let Some(group) = foreign.and_then(|f| self.known.groups.get(f as usize)) else {
                continue;
            };
            *place = Some(PackedGroup {
                blob: first_foreign.saturating_add(group.blob),
                ordinal: group.ordinal,
                offset: group.offset,
                stored_len: group.stored_len,
                raw_len: group.raw_len,
                exclusive: group.exclusive,
                digest: group.digest,
                decoded: group.decoded,
            });
        }
        blobs.extend_from_slice(&self.known.blobs);
        Ok(PackedGroups { groups, blobs, stats })
    }

    fn lane(&mut self, lane: Lane) -> &mut OpenGroup {
        match lane {
            Lane::Small => &mut self.small,
            Lane::Large => &mut self.large,
        }
    }

    /// Returns the number of the lane's open group. Opens one if necessary.
    fn open(&mut self, lane: Lane) -> Result<u32, PackError> {
        if let Some(number) = self.lane(lane).number {
            return Ok(number);
        }
        let capacity = self.options.group_len + self.options.chunk_len.max;
        let buffer = self.pipeline.buffer(capacity);
        let number = self.next_number(None)?;
        *self.lane(lane) = OpenGroup { number: Some(number), raw: buffer, chunks: Vec::new() };
        Ok(number)
    }

    pub(super) fn next_number(&mut self, foreign: Option<u32>) -> Result<u32, PackError> {
        let number = u32::try_from(self.foreign.len())
            .map_err(|_| PackError::Limit { what: "groups", limit: u32::MAX.into() })?;
        self.foreign.push(foreign);
        Ok(number)
    }

    /// Submits the lane's open group for compression.
    fn close(&mut self, lane: Lane) -> Result<(), PackError> {
        let group = std::mem::take(self.lane(lane));
        let Some(number) = group.number.filter(|_| !group.raw.is_empty()) else {
            // Still empty: it stays open and keeps its number.
            *self.lane(lane) = group;
            return Ok(());
        };
        let job = CompressJob {
            sequence: self.sequence,
            number,
            raw: group.raw,
            exclusive: lane == Lane::Large,
            chunks: group.chunks,
        };
        self.sequence += 1;
        if self.pipeline.submit(job) { Ok(()) } else { Err(PackError::Stopped) }
    }

    /// Returns the group and offset of a known chunk, or `None` if the chunk is new.
    fn find(&mut self, digest: &ChunkDigest, len: u32) -> Result<Option<(u32, u32)>, PackError> {
        let found = match self.known.find(digest, len) {
            None => return Ok(None),
            Some(Place::Numbered { group, offset }) => (group, offset),
            Some(Place::Foreign { group, offset }) => (self.numbered(group)?, offset),
        };
        self.stats.known_bytes += u64::from(len);
        Ok(Some(found))
    }

    /// Adds a file that is one chunk. Reads it directly into the open group, and truncates the
    /// group again if the chunk is already known.
    fn add_small(&mut self, size: u64, reader: &mut dyn Read) -> Result<(u32, u32), PackError> {
        let number = self.open(Lane::Small)?;
        let group = &mut self.small;
        let start = group.raw.len();
        let have = reader.take(size).read_to_end(&mut group.raw).map_err(PackError::Read)?;
        if have as u64 != size {
            group.raw.truncate(start);
            return Err(PackError::Short { have: have as u64, want: size });
        }
        let digest = ChunkDigest(Digest::of(group.raw.get(start..).unwrap_or(&[])));
        // Fits: small files and groups are far below 4 GiB.
        let (offset, len) = (count(start), count(have));
        if let Some(found) = self.find(&digest, len)? {
            self.small.raw.truncate(start);
            return Ok(found);
        }
        self.small.chunks.push(TocChunk { digest, offset, len });
        self.known.insert(digest, len, Place::Numbered { group: number, offset });
        if self.small.raw.len() >= self.options.group_len {
            self.close(Lane::Small)?;
        }
        Ok((number, offset))
    }

    /// Adds one chunk of a large file.
    fn add_chunk(&mut self, chunk: &[u8]) -> Result<(u32, u32), PackError> {
        let digest = ChunkDigest(Digest::of(chunk));
        let len = count(chunk.len());
        if let Some(found) = self.find(&digest, len)? {
            return Ok(found);
        }
        if self.large.raw.len() + chunk.len() > self.options.group_len {
            self.close(Lane::Large)?;
        }
        let number = self.open(Lane::Large)?;
        let offset = count(self.large.raw.len());
        self.large.raw.extend_from_slice(chunk);
        self.large.chunks.push(TocChunk { digest, offset, len });
        self.known.insert(digest, len, Place::Numbered { group: number, offset });
        Ok((number, offset))
    }

    /// Cuts `len` bytes of a large file, starting at file offset `at`, into chunks.
    fn add_range(
        &mut self,
        at: u64,
        len: u64,
        reader: &mut dyn Read,
        pieces: &mut Collected,
    ) -> Result<(), PackError> {
        let bounds = self.options.chunk_len;
        let mut window = std::mem::take(&mut self.window);
        window.clear();
        let (mut start, mut read, mut offset) = (0usize, 0u64, at);
        let result = loop {
            if window.len() - start < bounds.max && read < len {
                window.drain(..start);
                start = 0;
                let want = (READ_LEN as u64).min(len - read);
                let have = match reader.take(want).read_to_end(&mut window) {
                    Ok(have) => have as u64,
                    Err(error) => break Err(PackError::Read(error)),
                };
                read += have;
                if have < want {
                    break Err(PackError::Short { have: read, want: len });
                }
                continue;
            }
            let rest = window.len() - start;
            if rest == 0 {
                break Ok(());
            }
            let (_, end) =
                FastCDC::new(&window, bounds.min, bounds.avg, bounds.max).cut(start, rest);
            let Some(chunk) = window.get(start..end).filter(|chunk| !chunk.is_empty()) else {
                break Err(PackError::Panicked);
            };
            match self.add_chunk(chunk) {
                Ok(place) => pieces.push(offset, chunk, place),
                Err(error) => break Err(error),
            }
            offset += chunk.len() as u64;
            start = end;
        };
        self.window = window;
        result
    }

    fn add_ranges(
        &mut self,
        content: u64,
        data: &[Range<u64>],
        reader: &mut dyn Read,
        pieces: &mut Collected,
    ) -> Result<(), PackError> {
        for range in data.iter().filter(|range| !range.is_empty()) {
            let len = range.end - range.start;
            if content <= small_max(&self.options) as u64 {
                let place = self.add_small(len, reader)?;
                pieces.place(range.start, count(usize::try_from(len).unwrap_or(0)), place);
            } else {
                self.add_range(range.start, len, reader, pieces)?;
            }
        }
        Ok(())
    }

    fn add_inline(size: u64, reader: &mut dyn Read) -> Result<Content, PackError> {
        let mut bytes = Vec::new();
        let have = reader.take(size).read_to_end(&mut bytes).map_err(PackError::Read)? as u64;
        if have != size {
            return Err(PackError::Short { have, want: size });
        }
        Ok(Content::Inline(bytes.into()))
    }
}

impl FileSink for Packer {
    fn add_file(
        &mut self,
        size: u64,
        data: &[Range<u64>],
        reader: &mut dyn Read,
    ) -> Result<Content, PackError> {
        check_ranges(size, data)?;
        let content: u64 = data.iter().map(|range| range.end - range.start).sum();
        if content == 0 {
            return Ok(Content::Hole);
        }
        self.stats.content_bytes += content;
        let whole = content == size;
        if whole && size <= self.options.inline_len_max {
            return Self::add_inline(size, reader);
        }
        if whole && size <= small_max(&self.options) as u64 {
            let (group, group_offset) = self.add_small(size, reader)?;
            return Ok(Content::Single { group, group_offset });
        }
        // The digest is for files that may be served whole. Files with holes get none: hashing a
        // huge hole would take too long.
        let mut pieces = Collected::new(whole);
        let added = self.add_ranges(content, data, reader, &mut pieces);
        // Also after an error, so that the next file does not share a group with this one.
        self.close(Lane::Large)?;
        added?;
        Ok(Content::Pieces(Box::new(pieces.finish())))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Small,
    Large,
}

/// The extents of the current file.
struct Collected {
    extents: Vec<PackedExtent>,
    hasher: Option<blake3::Hasher>,
}

impl Collected {
    fn new(whole: bool) -> Self {
        Self { extents: Vec::new(), hasher: whole.then(blake3::Hasher::new) }
    }

    fn push(&mut self, file_offset: u64, chunk: &[u8], place: (u32, u32)) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(chunk);
        }
        self.place(file_offset, count(chunk.len()), place);
    }

    /// Appends an extent. Merges it with the last one if they are adjacent in both the file and the
    /// group.
    fn place(&mut self, file_offset: u64, len: u32, (group, group_offset): (u32, u32)) {
        if let Some(last) = self.extents.last_mut()
            && last.group == group
            && last.group_offset + last.len == group_offset
            && last.file_offset + u64::from(last.len) == file_offset
        {
            last.len += len;
            return;
        }
        self.extents.push(PackedExtent { file_offset, group, group_offset, len });
    }

    fn finish(self) -> Pieces {
        let digest = self.hasher.map(|hasher| Digest::from_bytes(*hasher.finalize().as_bytes()));
        Pieces { extents: self.extents, digest }
    }
}

fn small_max(options: &PackOptions) -> usize {
    usize::try_from(options.small_len_max).unwrap_or(usize::MAX)
}

/// Converts a length or offset inside a group. Always fits, because `GROUP_RAW_LEN_MAX` does.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn check_ranges(size: u64, data: &[Range<u64>]) -> Result<(), PackError> {
    let mut floor = 0;
    for range in data {
        if range.start < floor || range.end < range.start || range.end > size {
            let wrong = "the ranges of a sparse file are out of order or past its end";
            return Err(PackError::Read(io::Error::new(io::ErrorKind::InvalidData, wrong)));
        }
        floor = range.end;
    }
    if size > FILE_LEN_MAX {
        return Err(PackError::Limit { what: "bytes in a file", limit: FILE_LEN_MAX });
    }
    Ok(())
}
