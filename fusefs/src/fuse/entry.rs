//! Encodes replies that introduce an inode to the kernel: to LOOKUP and READDIRPLUS.
//!
//! Written by hand, because fuser uses one number for two: the node ID between the kernel and this
//! server, and the inode number that programs see. Layouts follow `include/uapi/linux/fuse.h`.

use std::fmt::{self, Write};
use std::io::IoSlice;
use std::mem;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, ReplyDirectoryPlus, ReplyEntry, Request};
use rustix::io::{Errno, writev};

use super::{FOR_EVER, GENERATION};
use crate::inflight::Unique;

const OUT_HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 128;
const DIRENT_LEN: usize = 24;
/// Alignment of directory entries.
const ALIGN: usize = 8;
/// The kernel offers at least a page, and no page is smaller.
const ROOM_MIN: usize = 4096;

/// An inode as introduced to the kernel.
pub(super) struct Introduced<'a> {
    /// Node ID; 0 for a negative entry.
    pub(super) node: INodeNo,
    /// Attributes that programs see, including the inode number.
    pub(super) attr: &'a FileAttr,
}

/// Replies to a lookup. The kernel may cache the entry forever.
pub(super) fn entry(
    device: impl AsFd,
    request: &Request,
    reply: ReplyEntry,
    introduced: &Introduced<'_>,
) {
    let mut bytes = Vec::with_capacity(ENTRY_LEN);
    introduced.put(&mut bytes);
    send(device, Unique(request.unique().0), &bytes);
    // `reply` owns no memory, only a share of the session; dropping it would send a second reply.
    mem::forget(reply);
}

/// A READDIRPLUS reply under construction.
pub(super) struct Listing<R> {
    bytes: Vec<u8>,
    /// Buffer size in bytes, as far as known.
    room: usize,
    /// Returns the size that the kernel offered.
    ask: Option<R>,
}

impl<R: FnOnce() -> Option<usize>> Listing<R> {
    /// Creates an empty listing. `ask`, e.g. [`room_of`], is called once a page is not enough.
    pub(super) fn new(ask: R) -> Self {
        Self { bytes: Vec::with_capacity(ROOM_MIN), room: ROOM_MIN, ask: Some(ask) }
    }

    /// Adds a name; the listing continues at `next` after it. Returns whether the buffer is full.
    pub(super) fn add(&mut self, introduced: &Introduced<'_>, next: u64, name: &[u8]) -> bool {
        let len = ENTRY_LEN + DIRENT_LEN + name.len().next_multiple_of(ALIGN);
        let end = self.bytes.len() + len;
        if end > self.room
            && let Some(ask) = self.ask.take()
        {
            self.room = ask().unwrap_or(ROOM_MIN).max(ROOM_MIN);
        }
        if end > self.room {
            return true;
        }
        introduced.put(&mut self.bytes);
        let attr = introduced.attr;
        self.bytes.extend(attr.ino.0.to_ne_bytes());
        self.bytes.extend(next.to_ne_bytes());
        // Names have at most 255 bytes.
        self.bytes.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend((mode(attr) >> 12).to_ne_bytes());
        self.bytes.extend(name);
        self.bytes.resize(end, 0);
        false
    }

    /// Returns the encoded listing.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Replies with a complete listing.
pub(super) fn listing(
    device: impl AsFd,
    request: &Request,
    reply: ReplyDirectoryPlus,
    bytes: &[u8],
) {
    send(device, Unique(request.unique().0), bytes);
    // Nothing was added to `reply`, so it owns no memory.
    mem::forget(reply);
}

impl Introduced<'_> {
    fn put(&self, bytes: &mut Vec<u8>) {
        let FileAttr { ino, size, blocks, nlink, uid, gid, rdev, blksize, .. } = *self.attr;
        let [atime, mtime, ctime] =
            [self.attr.atime, self.attr.mtime, self.attr.ctime].map(since_1970);
        let kept = FOR_EVER.as_secs();
        for field in [self.node.0, GENERATION.0, kept, kept] {
            bytes.extend(field.to_ne_bytes());
        }
        // Nanoseconds of both time-to-live fields.
        bytes.extend([0; 8]);
        for field in [ino.0, size, blocks] {
            bytes.extend(field.to_ne_bytes());
        }
        for (secs, _) in [atime, mtime, ctime] {
            bytes.extend(secs.to_ne_bytes());
        }
        for (_, nanos) in [atime, mtime, ctime] {
            bytes.extend(nanos.to_ne_bytes());
        }
        let flags = 0;
        for field in [mode(self.attr), nlink, uid, gid, rdev, blksize, flags] {
            bytes.extend(field.to_ne_bytes());
        }
    }
}

fn mode(attr: &FileAttr) -> u32 {
    let kind = match attr.kind {
        FileType::NamedPipe => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::Directory => libc::S_IFDIR,
        FileType::RegularFile => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    };
    kind | u32::from(attr.perm)
}

/// Returns whole seconds, negative before 1970, and the nanoseconds after them.
fn since_1970(time: SystemTime) -> (i64, u32) {
    let secs = |secs: u64| i64::try_from(secs).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (secs(after.as_secs()), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            match before.subsec_nanos() {
                0 => (-secs(before.as_secs()), 0),
                nanos => (-secs(before.as_secs()) - 1, 1_000_000_000 - nanos),
            }
        }
    }
}

/// Sends a reply. Ignores the errors for an interrupted request and an ended connection.
pub(super) fn send(device: impl AsFd, unique: Unique, body: &[u8]) {
    let mut header = Vec::with_capacity(OUT_HEADER_LEN);
    let len = u32::try_from(OUT_HEADER_LEN + body.len()).unwrap_or(u32::MAX);
    header.extend(len.to_ne_bytes());
    // No error.
    header.extend([0; 4]);
    header.extend(unique.0.to_ne_bytes());
    match writev(device, &[IoSlice::new(&header), IoSlice::new(body)]) {
        Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
        Err(error) => tracing::warn!(%error, "the kernel rejected a reply"),
    }
}

/// Returns the buffer size that the kernel offered for a listing. fuser exposes it only in its
/// `Debug` output, which costs system calls for the device's path. If that output ever changes, the
/// fallback is a page, which is always offered.
pub(super) fn room_of(reply: &ReplyDirectoryPlus) -> Option<usize> {
    let mut seen = NumberAfter { marker: b"max_size: ", matched: 0, digits: String::new() };
    // Stops with an error as soon as the number is complete.
    let _ = write!(seen, "{reply:?}");
    seen.digits.parse().ok()
}

/// Extracts the number after a marker from formatted text, then fails further writes.
struct NumberAfter {
    marker: &'static [u8],
    matched: usize,
    digits: String,
}

impl Write for NumberAfter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match self.marker.get(self.matched) {
                Some(wanted) if *wanted == byte => self.matched += 1,
                Some(_) => self.matched = usize::from(self.marker.first() == Some(&byte)),
                None if byte.is_ascii_digit() => self.digits.push(byte.into()),
                None => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_introduction_has_the_kernels_layout() {
        let mut attr = super::super::root::ATTR;
        (attr.ino, attr.size, attr.blocks) = (INodeNo(7), 8, 9);
        attr.ctime = UNIX_EPOCH - Duration::from_millis(1500);
        (attr.perm, attr.nlink, attr.uid, attr.gid, attr.rdev) = (0o755, 2, 3, 4, 5);
        let mut bytes = Vec::new();
        Introduced { node: INodeNo(1 << 33), attr: &attr }.put(&mut bytes);
        assert_eq!(bytes.len(), ENTRY_LEN);
        let long = |at: usize| i64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let int = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([long(0), long(40), long(48), long(56)], [1 << 33, 7, 8, 9]);
        // Seconds and nanoseconds of ctime.
        assert_eq!((long(80), int(96)), (-2, 500_000_000));
        assert_eq!([int(100), int(104), int(108), int(112), int(116)], [0o40755, 2, 3, 4, 5]);
    }

    #[test]
    fn a_listing_fills_its_buffer_and_no_more() {
        let attr = super::super::root::ATTR;
        let introduced = Introduced { node: INodeNo(5), attr: &attr };
        let asked = std::cell::Cell::new(0);
        let room = ROOM_MIN + 2 * (ENTRY_LEN + DIRENT_LEN + 8);
        let mut listing = Listing::new(|| {
            asked.set(asked.get() + 1);
            Some(room)
        });
        // A page is always offered.
        for _ in 0..ROOM_MIN / (ENTRY_LEN + DIRENT_LEN + 8) {
            assert!(!listing.add(&introduced, 1, b"a"));
        }
        assert_eq!(asked.get(), 0);
        let left = room - listing.bytes.len();
        assert!(!listing.add(&introduced, 1, b"a"));
        assert!(!listing.add(&introduced, 2, b"12345678"));
        let left = left - 2 * (ENTRY_LEN + DIRENT_LEN + 8);
        assert!(left < ENTRY_LEN + DIRENT_LEN);
        assert!(listing.add(&introduced, 3, b""));
        assert!(listing.add(&introduced, 3, b""));
        assert_eq!(asked.get(), 1);
        assert_eq!(listing.into_bytes().len(), room - left);
        // Without the kernel's size, it is a page.
        let mut listing = Listing::new(|| None);
        while !listing.add(&introduced, 1, b"a") {}
        assert!(listing.into_bytes().len() <= ROOM_MIN);
    }

    #[test]
    fn the_buffer_size_is_read_from_fusers_debug_output() {
        let number_in = |text: &str| {
            let mut seen = NumberAfter { marker: b"max_size: ", matched: 0, digits: String::new() };
            let _ = seen.write_str(text);
            seen.digits
        };
        assert_eq!(
            number_in("ReplyDirectoryPlus { buf: List { mmax_size: 32768, buf: [] } }"),
            "32768"
        );
        assert_eq!(number_in("max_siz max_size 4"), "");
    }
}
