//! Iterates over the entries of a tar archive.

use std::io::{self, Read};

use inlay_store::tree::NodeKind;
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::decode::Decoder;
use super::entry::{Body, Entry, Headers, number};
use super::pax::PaxOverrides;
use super::sparse::{DataMap, MapPlace, SparseMap};
use super::stream::{BLOCK, Budget, Stream, StreamError};
use crate::import::{ImportError, Layer};

/// Maximum length of a long name, in bytes. Linux accepts paths of 4096.
const LONG_NAME_LEN_MAX: u64 = 1 << 20;
/// Maximum size of an extended header, in bytes: an entry may have many attributes of 64 KiB each.
const EXTENDED_LEN_MAX: u64 = 16 << 20;

/// Treatment of an archive without the block of zeros that marks its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndMark {
    /// An error: the archive is truncated.
    Required,
    /// Accepted: a digest verifies completeness, and some writers of layers omit the mark.
    Optional,
}

/// An archive being read. Its `Read` implementation returns the current entry's data.
pub struct Archive {
    layer: String,
    stream: Stream,
    end_mark: EndMark,
    globals: PaxOverrides,
    /// Remaining data and padding of the current entry, in bytes.
    data_left: u64,
    padding: u64,
    failure: Option<StreamError>,
}

impl Archive {
    /// Opens `layer`. Reads fail once it decompresses to more than the remaining budget.
    pub(crate) fn open(
        layer: &mut dyn Layer,
        budget: Budget,
        end_mark: EndMark,
    ) -> Result<Self, ImportError> {
        let name = layer.name();
        let stored = layer.open().and_then(Decoder::new);
        let decoder = stored.map_err(|source| StreamError::Read(source).of(&name, 0))?;
        Ok(Self::over(decoder, name, budget, end_mark))
    }

    /// Reads an archive from `source`, called `name` in messages, without a budget.
    pub fn of(
        source: Box<dyn Read + Send>,
        name: &str,
        end_mark: EndMark,
    ) -> Result<Self, ImportError> {
        let decoder = Decoder::new(source).map_err(|e| StreamError::Read(e).of(name, 0))?;
        let budget = Budget { spent: 0, limit: u64::MAX };
        Ok(Self::over(decoder, name.to_owned(), budget, end_mark))
    }

    fn over(decoder: Decoder, layer: String, budget: Budget, end_mark: EndMark) -> Self {
        Self {
            layer,
            stream: Stream::new(Box::new(decoder), budget),
            end_mark,
            globals: PaxOverrides::default(),
            data_left: 0,
            padding: 0,
            failure: None,
        }
    }

    /// Returns the next entry, skipping the rest of the current one; `None` at the end of the
    /// archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ImportError> {
        let rest = self.data_left + self.padding;
        self.stream.skip(rest).map_err(|error| self.stream_error(error))?;
        (self.data_left, self.padding) = (0, 0);
        let mut extended = self.globals.clone();
        let (mut long_name, mut long_link) = (None, None);
        let mut between = true;
        loop {
            let Some(block) = self.header_block(between)? else { return Ok(None) };
            let header = Header::from_byte_slice(&block);
            between = false;
            match header.entry_type() {
                EntryType::GNULongName => long_name = Some(self.long_text(header)?),
                EntryType::GNULongLink => long_link = Some(self.long_text(header)?),
                EntryType::XHeader => {
                    let records = self.extended_bytes(header, EXTENDED_LEN_MAX)?;
                    extended.read(&records).map_err(|why| self.malformed(why))?;
                }
                EntryType::XGlobalHeader => {
                    let records = self.extended_bytes(header, EXTENDED_LEN_MAX)?;
                    self.take_globals(&records)?;
                    extended = self.globals.clone();
                    between = true;
                }
                // A volume label.
                kind if kind.as_byte() == b'V' => between = true,
                _ => {
                    let headers = Headers { header, extended, long_name, long_link };
                    return self.entry(headers).map(Some);
                }
            }
        }
    }

    /// Returns and clears the reason of the last failed read.
    pub fn take_failure(&mut self) -> Option<ImportError> {
        let failure = self.failure.take()?;
        Some(self.stream_error(failure))
    }

    /// Reads to the end, so that the layer's reader can verify a digest. Returns the remaining
    /// budget.
    pub fn finish(mut self) -> Result<Budget, ImportError> {
        self.stream.drain().map_err(|error| self.stream_error(error))?;
        Ok(self.stream.budget())
    }

    fn entry(&mut self, mut headers: Headers<'_>) -> Result<Entry, ImportError> {
        let name = headers.name();
        let wrong = |layer: &str, why| ImportError::Entry {
            layer: layer.to_owned(),
            entry: name.iter().copied().take(4096).collect(),
            why,
        };
        let stored = if headers.has_data() { headers.stored() } else { Ok(0) };
        let stored = stored.map_err(|why| wrong(&self.layer, why))?;
        let Some(padded) = stored.checked_next_multiple_of(BLOCK as u64) else {
            return Err(wrong(&self.layer, "its size is no valid number".into()));
        };
        // Check the budget before the caller reserves memory for the entry.
        self.stream.expect(padded).map_err(|error| self.stream_error(error))?;
        (self.data_left, self.padding) = (stored, padded - stored);
        let meta = headers.meta().map_err(|why| wrong(&self.layer, why))?;
        let body = match headers.node(&name).map_err(|why| wrong(&self.layer, why))? {
            Some(body) => body,
            None => match self.regular(&mut headers)? {
                Ok(body) => body,
                Err(why) => return Err(wrong(&self.layer, why)),
            },
        };
        if let Body::Node(NodeKind::Symlink(target)) = &body
            && target.is_empty()
        {
            return Err(wrong(&self.layer, "the symbolic link has no target".into()));
        }
        Ok(Entry { name, meta, body })
    }

    /// Returns size and data ranges of a regular file. The inner error is a defect of the entry.
    fn regular(&mut self, headers: &mut Headers<'_>) -> Result<Result<Body, String>, ImportError> {
        let place = match headers.extended.sparse.place() {
            Ok(place) => place,
            Err(why) => return Ok(Err(why)),
        };
        let mut size = headers.extended.sparse.size;
        let map = match place {
            MapPlace::Records(map) => Some(map),
            MapPlace::Data => self.map_in_data()?,
            MapPlace::None if headers.header.entry_type() == EntryType::GNUSparse => {
                let Some(gnu) = headers.header.as_gnu() else {
                    return Ok(Err("a sparse file in an unknown form".into()));
                };
                match number(&gnu.realsize, "size") {
                    Ok(real) => size = Some(real),
                    Err(why) => return Ok(Err(why)),
                }
                self.map_in_headers(gnu)?
            }
            MapPlace::None => {
                let size = self.data_left;
                let data = (size > 0).then_some(0..size).into_iter().collect();
                return Ok(Ok(Body::Regular { size, data }));
            }
        };
        let size = size.filter(|&size| i64::try_from(size).is_ok());
        let stored = self.data_left;
        let body = map
            .zip(size)
            .and_then(|(map, size)| Some(Body::Regular { size, data: map.finish(size, stored)? }));
        Ok(body.ok_or_else(|| "its map of a sparse file contradicts itself".into()))
    }

    /// Reads a map in the old GNU format: four pieces in the header, 21 in each block that follows.
    fn map_in_headers(&mut self, gnu: &tar::GnuHeader) -> Result<Option<SparseMap>, ImportError> {
        let mut map = SparseMap::default();
        let mut fits = gnu.sparse.iter().all(|piece| map.push_fields(piece).is_some());
        let mut more = gnu.is_extended();
        while more && fits {
            let mut block = GnuExtSparseHeader::new();
            let bytes = self.stream.block().and_then(|block| block.ok_or(StreamError::Cut));
            *block.as_mut_bytes() = bytes.map_err(|error| self.stream_error(error))?;
            fits = block.sparse().iter().all(|piece| map.push_fields(piece).is_some());
            more = block.is_extended();
        }
        Ok(fits.then_some(map))
    }

    /// Reads a map in format 1.0: text at the start of the data, padded to whole blocks.
    fn map_in_data(&mut self) -> Result<Option<SparseMap>, ImportError> {
        let mut map = DataMap::default();
        loop {
            let Some(left) = self.data_left.checked_sub(BLOCK as u64) else { return Ok(None) };
            let block = self.stream.block().and_then(|block| block.ok_or(StreamError::Cut));
            let block = block.map_err(|error| self.stream_error(error))?;
            self.data_left = left;
            match map.take(&block) {
                Ok(true) => return Ok(Some(map.finish())),
                Ok(false) => {}
                Err(()) => return Ok(None),
            }
        }
    }

    /// Reads the next header; `None` at the end. `between` tells whether the archive may end here.
    fn header_block(&mut self, between: bool) -> Result<Option<[u8; BLOCK]>, ImportError> {
        let block = self.stream.block().map_err(|error| self.stream_error(error))?;
        let Some(block) = block else {
            return match self.end_mark {
                EndMark::Optional if between => Ok(None),
                _ => Err(self.stream_error(StreamError::Cut)),
            };
        };
        if block.iter().all(|&b| b == 0) {
            return if between {
                Ok(None)
            } else {
                Err(self.malformed("an extended header belongs to no entry".into()))
            };
        }
        if checksum_fits(&block) {
            Ok(Some(block))
        } else {
            Err(self.malformed("a header's checksum is wrong".into()))
        }
    }

    fn long_text(&mut self, header: &Header) -> Result<Vec<u8>, ImportError> {
        let mut text = self.extended_bytes(header, LONG_NAME_LEN_MAX)?;
        let len = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        text.truncate(len);
        Ok(text)
    }

    fn extended_bytes(&mut self, header: &Header, len_max: u64) -> Result<Vec<u8>, ImportError> {
        let len: u64 = number(&header.as_old().size, "size").map_err(|why| self.malformed(why))?;
        if len > len_max {
            return Err(self.malformed(format!("an extended header has {len} bytes")));
        }
        let padding = len.next_multiple_of(BLOCK as u64) - len;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = self.stream.bytes(len);
        let bytes = bytes.and_then(|bytes| self.stream.skip(padding).map(|()| bytes));
        bytes.map_err(|error| self.stream_error(error))
    }

    /// Applies the records of a global header to all subsequent entries.
    fn take_globals(&mut self, records: &[u8]) -> Result<(), ImportError> {
        let mut globals = self.globals.clone();
        globals.read(records).map_err(|why| self.malformed(why))?;
        self.globals = globals.for_all();
        Ok(())
    }

    fn malformed(&self, why: String) -> ImportError {
        ImportError::Archive { layer: self.layer.clone(), why, at: self.stream.position() }
    }

    fn stream_error(&self, error: StreamError) -> ImportError {
        error.of(&self.layer, self.stream.position())
    }
}

impl Read for Archive {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.data_left).map_or(out.len(), |left| left.min(out.len()));
        let out = out.get_mut(..len).unwrap_or(&mut []);
        if out.is_empty() {
            return Ok(0);
        }
        let failure = match self.stream.read(out) {
            Ok(0) => StreamError::Cut,
            Ok(len) => {
                self.data_left -= len as u64;
                return Ok(len);
            }
            Err(error) => error,
        };
        // The caller only needs to stop; `take_failure` returns the reason.
        self.failure = Some(failure);
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

/// Verifies the header's checksum: the sum of its bytes, with the checksum field counted as spaces.
/// Some old writers summed signed bytes.
fn checksum_fits(block: &[u8; BLOCK]) -> bool {
    let Ok(wanted) = number::<i64>(&Header::from_byte_slice(block).as_old().cksum, "checksum")
    else {
        return false;
    };
    let (mut unsigned, mut signed) = (0, 0);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    wanted == unsigned || wanted == signed
}
