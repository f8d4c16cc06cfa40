//! Writes one tar entry's headers: ustar, preceded by a PAX extended header (POSIX.1-2001, `pax`,
//! "pax Interchange Format") for values that ustar cannot hold.
//!
//! Extended attributes are `SCHILY.xattr.NAME` with raw values, as written by GNU tar, star and the
//! container engines. Sparse files use GNU tar's format 1.0 (its manual, "PAX Format, Version
//! 1.0").

use std::io::{self, Write};

use inlay_store::format::{Attr, Timestamp};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Largest size and time in a 12-byte ustar field: 11 octal digits.
const LONG_FIELD_MAX: u64 = 0o777_7777_7777;
/// Largest owner and device number in an 8-byte ustar field: 7 octal digits.
pub(crate) const SHORT_FIELD_MAX: u32 = 0o777_7777;
/// Maximum bytes of extended header written for one entry.
pub const EXTENDED_LEN_MAX: usize = 16 << 20;

/// An entry to write.
#[derive(Debug)]
pub struct PaxEntry<'a> {
    /// Path without a leading slash; directories have a trailing one.
    pub path: &'a [u8],
    /// Type of the object.
    pub kind: EntryType,
    /// Target of a link, else empty.
    pub link: &'a [u8],
    /// Owner, mode and times.
    pub attr: &'a Attr,
    /// Bytes of the entry in the archive, without padding.
    pub stored_len: u64,
    /// Apparent size of a sparse file, with its map stored before its data.
    pub sparse_size: Option<u64>,
}

/// A PAX extended header under construction.
#[derive(Debug, Default)]
pub struct PaxRecords {
    records: Vec<u8>,
}

impl PaxRecords {
    /// Adds a record: its own length in decimal, a space, the key, `=`, the value, a line feed.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3; // a space, an equals sign, a line feed
        let mut len = rest + 1;
        // The length includes its own digits, and converges after at most two rounds.
        while rest + digits(len) != len {
            len = rest + digits(len);
        }
        self.records.extend_from_slice(format!("{len} ").as_bytes());
        self.records.extend_from_slice(key);
        self.records.push(b'=');
        self.records.extend_from_slice(value);
        self.records.push(b'\n');
    }

    /// Adds an extended attribute. A key ends at the first equals sign, so, like GNU tar, `=` in a
    /// name becomes `%3D`, and `%` becomes `%25`.
    pub fn add_xattr(&mut self, name: &[u8], value: &[u8]) {
        let mut key = b"SCHILY.xattr.".to_vec();
        for &byte in name {
            match byte {
                b'=' => key.extend_from_slice(b"%3D"),
                b'%' => key.extend_from_slice(b"%25"),
                _ => key.push(byte),
            }
        }
        self.add(&key, value);
    }

    /// Length of the records in bytes.
    pub fn byte_len(&self) -> usize {
        self.records.len()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut header = Header::new_ustar();
        put_name(&mut header, b"PaxHeaders/entry");
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(self.records.len() as u64);
        header.set_cksum();
        out.write_all(header.as_bytes())?;
        out.write_all(&self.records)?;
        pad(self.records.len() as u64, out)
    }
}

/// Writes the headers of `entry`. The caller writes its data and padding.
///
/// `extended` holds the extended attributes.
pub fn write_headers(
    entry: &PaxEntry<'_>,
    mut extended: PaxRecords,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    let attr = entry.attr;
    header.set_entry_type(entry.kind);
    header.set_mode(u32::from(attr.perm));
    header.set_uid(short_field(attr.uid, b"uid", &mut extended));
    header.set_gid(short_field(attr.gid, b"gid", &mut extended));
    if entry.stored_len > LONG_FIELD_MAX {
        extended.add(b"size", entry.stored_len.to_string().as_bytes());
    }
    header.set_size(entry.stored_len.min(LONG_FIELD_MAX));
    header.set_mtime(time_field(attr.mtime, &mut extended));
    if let Some(size) = entry.sparse_size {
        // Readers without support for the format extract the map and the data under this name.
        put_name(&mut header, b"GNUSparseFile.0/entry");
        extended.add(b"GNU.sparse.major", b"1");
        extended.add(b"GNU.sparse.minor", b"0");
        extended.add(b"GNU.sparse.name", entry.path);
        extended.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
    } else if !put_name(&mut header, entry.path) {
        extended.add(b"path", entry.path);
    }
    if !put_link(&mut header, entry.link) {
        extended.add(b"linkpath", entry.link);
    }
    if matches!(entry.kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(attr.device.major)?;
        header.set_device_minor(attr.device.minor)?;
    }
    header.set_cksum();
    if extended.byte_len() > 0 {
        extended.write(out)?;
    }
    out.write_all(header.as_bytes())
}

/// Pads `len` bytes to the next block boundary.
pub fn pad(len: u64, out: &mut dyn Write) -> io::Result<()> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let used = usize::try_from(len % BLOCK as u64).unwrap_or(0);
    match used {
        0 => Ok(()),
        used => out.write_all(ZEROS.get(used..).unwrap_or(&[])),
    }
}

/// Writes the end of an archive: two blocks of zeros.
pub fn write_end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// Returns the map stored before a sparse file's data: the number of pieces, then the offset and
/// length of each, one number per line, padded to a block. A hole at the end is encoded as an empty
/// piece.
pub fn sparse_map(data: &[std::ops::Range<u64>], size: u64) -> Vec<u8> {
    let ends_in_hole = data.last().is_none_or(|last| last.end < size);
    let mut map = format!("{}\n", data.len() + usize::from(ends_in_hole)).into_bytes();
    for piece in data {
        map.extend_from_slice(format!("{}\n{}\n", piece.start, piece.end - piece.start).as_bytes());
    }
    if ends_in_hole {
        map.extend_from_slice(format!("{size}\n0\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn digits(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Copies as much of `name` into the header as fits. Returns whether the header represents it
/// fully: ustar names are ASCII and at most 100 bytes long.
fn put_name(header: &mut Header, name: &[u8]) -> bool {
    header.as_ustar_mut().is_some_and(|ustar| put(&mut ustar.name, name))
}

fn put_link(header: &mut Header, link: &[u8]) -> bool {
    header.as_ustar_mut().is_some_and(|ustar| put(&mut ustar.linkname, link))
}

fn put(field: &mut [u8], text: &[u8]) -> bool {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
    text.len() <= field.len() && text.is_ascii()
}

fn short_field(value: u32, key: &[u8], extended: &mut PaxRecords) -> u64 {
    if value > SHORT_FIELD_MAX {
        extended.add(key, value.to_string().as_bytes());
    }
    value.min(SHORT_FIELD_MAX).into()
}

fn time_field(time: Timestamp, extended: &mut PaxRecords) -> u64 {
    let field = u64::try_from(time.secs).unwrap_or(0).min(LONG_FIELD_MAX);
    if i64::try_from(field) != Ok(time.secs) || time.nanos != 0 {
        extended.add(b"mtime", decimal(time).as_bytes());
    }
    field
}

/// Formats seconds since 1970 in decimal. `nanos` counts forwards even before 1970, whereas a
/// decimal fraction counts away from zero.
fn decimal(time: Timestamp) -> String {
    let mut nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    nanos = nanos.abs();
    let (secs, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    match fraction {
        0 => format!("{sign}{secs}"),
        _ => format!("{sign}{secs}.{fraction:09}").trim_end_matches('0').to_owned(),
    }
}
