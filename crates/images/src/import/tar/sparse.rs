//! Parses the maps of sparse files: the old GNU map in headers, and the three PAX formats.
//!
//! The GNU tar manual, "Storing Sparse Files", defines the formats.

use std::ops::Range;

use super::number::{decimal, field};

/// Maximum pieces of a file; more than any filesystem produces for a file worth keeping sparse.
pub(super) const PIECES_MAX: usize = 1 << 20;

/// Data ranges of a sparse file under construction.
#[derive(Debug, Clone, Default)]
pub(super) struct SparseMap {
    pieces: Vec<Range<u64>>,
    end: u64,
}

impl SparseMap {
    /// Adds a piece. `None` if it overlaps the previous one, or there are too many.
    pub(super) fn push(&mut self, offset: u64, len: u64) -> Option<()> {
        let end = offset.checked_add(len).filter(|_| offset >= self.end)?;
        self.end = end;
        if len == 0 {
            return Some(());
        }
        match self.pieces.last_mut() {
            Some(last) if last.end == offset => last.end = end,
            _ => {
                if self.pieces.len() == PIECES_MAX {
                    return None;
                }
                self.pieces.push(offset..end);
            }
        }
        Some(())
    }

    /// Adds a piece from an old GNU header. Empty ones are padding.
    pub(super) fn push_fields(&mut self, header: &tar::GnuSparseHeader) -> Option<()> {
        if header.is_empty() {
            return Some(());
        }
        let number = |bytes| field(bytes).and_then(|n| u64::try_from(n).ok());
        self.push(number(&header.offset)?, number(&header.numbytes)?)
    }

    /// Returns the pieces of a file of `size` bytes, `stored` of them in the archive. `None` if the
    /// map is inconsistent with these.
    pub(super) fn finish(self, size: u64, stored: u64) -> Option<Vec<Range<u64>>> {
        let total: u64 = self.pieces.iter().map(|piece| piece.end - piece.start).sum();
        (total == stored && self.end <= size).then_some(self.pieces)
    }
}

/// Values of `GNU.sparse.` records.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    /// Size of the file, holes included.
    pub(super) size: Option<u64>,
    /// Formats 0.0 and 0.1 have the map in the records.
    pub(super) map: Option<SparseMap>,
    offset: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
}

/// Location of a sparse file's map.
pub(super) enum MapPlace {
    /// The file is not sparse.
    None,
    /// In the records.
    Records(SparseMap),
    /// At the start of the entry's data (format 1.0).
    Data,
}

impl PaxSparse {
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ()> {
        let number = || decimal(value).map(Some).ok_or(());
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = number()?,
            b"major" => self.major = number()?,
            b"minor" => self.minor = number()?,
            b"offset" => self.offset = number()?,
            b"numblocks" => {
                self.map.get_or_insert_default();
            }
            b"numbytes" => {
                let (offset, len) = (self.offset.take().ok_or(())?, decimal(value).ok_or(())?);
                self.map.get_or_insert_default().push(offset, len).ok_or(())?;
            }
            b"map" => self.map = Some(read_list(value)?),
            _ => {}
        }
        Ok(())
    }

    /// Returns the location of the map. Fails for formats newer than 1.0.
    pub(super) fn place(&mut self) -> Result<MapPlace, String> {
        match (self.major, self.minor) {
            (None | Some(0), _) => Ok(self.map.take().map_or(MapPlace::None, MapPlace::Records)),
            (Some(1), None | Some(0)) => Ok(MapPlace::Data),
            (Some(major), minor) => {
                Err(format!("sparse format {major}.{} is not supported", minor.unwrap_or_default()))
            }
        }
    }
}

fn read_list(value: &[u8]) -> Result<SparseMap, ()> {
    let mut map = SparseMap::default();
    let mut numbers = value.split(|&b| b == b',').filter(|n| !n.is_empty());
    while let Some(offset) = numbers.next() {
        let len = numbers.next().ok_or(())?;
        map.push(decimal(offset).ok_or(())?, decimal(len).ok_or(())?).ok_or(())?;
    }
    Ok(map)
}

/// Incremental parser of a map in format 1.0: lines of decimal numbers, first the number of pieces,
/// then offset and length of each.
#[derive(Debug, Default)]
pub(super) struct DataMap {
    line: Vec<u8>,
    left: Option<u64>,
    offset: Option<u64>,
    map: SparseMap,
}

impl DataMap {
    /// Parses the next block. Returns true if it was the last one.
    pub(super) fn take(&mut self, block: &[u8]) -> Result<bool, ()> {
        for &byte in block {
            if byte != b'\n' {
                // The largest number has 20 digits.
                if self.line.len() == 20 {
                    return Err(());
                }
                self.line.push(byte);
                continue;
            }
            let number = decimal(&self.line).ok_or(())?;
            self.line.clear();
            match (self.left, self.offset.take()) {
                (None, _) => self.left = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(left), Some(offset)) => {
                    self.map.push(offset, number).ok_or(())?;
                    self.left = Some(left - 1);
                }
            }
            if self.left == Some(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn finish(self) -> SparseMap {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_and_must_fit() {
        let map = |pieces: &[(u64, u64)]| {
            let mut map = SparseMap::default();
            pieces.iter().try_for_each(|&(offset, len)| map.push(offset, len)).map(|()| map)
        };
        let joined = map(&[(0, 5), (5, 5), (20, 1), (30, 0)]).unwrap();
        assert_eq!(joined.clone().finish(30, 11), Some(vec![0..10, 20..21]));
        assert_eq!(joined.clone().finish(29, 11), None);
        assert_eq!(joined.finish(30, 12), None);
        assert!(map(&[(5, 5), (9, 1)]).is_none());
        assert!(map(&[(u64::MAX, 1)]).is_none());
    }

    #[test]
    fn a_map_in_the_data_ends_where_it_says() {
        let read = |text: &str| {
            let mut map = DataMap::default();
            map.take(text.as_bytes()).map(|done| (done, map.finish().pieces))
        };
        assert_eq!(read("2\n0\n10\n512\n1\n\0\0\0"), Ok((true, vec![0..10, 512..513])));
        assert_eq!(read("0\n"), Ok((true, vec![])));
        assert_eq!(read("2\n0\n10\n512\n9").map(|(done, _)| done), Ok(false));
        for wrong in ["\n", "x\n", "1\n-1\n5\n", "111111111111111111111", "2\n5\n5\n6\n5\n"] {
            assert_eq!(read(wrong), Err(()), "{wrong}");
        }
    }
}
