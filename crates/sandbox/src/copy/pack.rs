//! Packs objects into a tar archive.
//!
//! Traverses depth first, without recursion and in bounded memory: an object is written as soon as
//! it is listed, and only the names of some of a directory's subdirectories are kept. If a
//! directory has more, its listing resumes when these are done.

use std::ffi::{CStr, CString, OsStr};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use inlay_base::descent::Descent;
use inlay_base::held::Held;
use inlay_images::export::pax::{self, EXTENDED_LEN_MAX, PaxEntry, PaxRecords};
use inlay_store::format::{Attr, Device, FileKind, Timestamp};
use inlay_store::tree::Xattr;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, Stat, fstat, openat, readlinkat, seek};
use rustix::io::Errno;
use tar::EntryType;

use super::content::{Content, Holes};
use super::error::CopyError;
use super::links::{Links, Met};
use super::resolve::Root;
use super::xattrs::Buffers;

/// The maximum number of objects per copy.
pub(super) const OBJECTS_MAX: u64 = 16 << 20;
/// The maximum length of a path in an archive, in bytes.
pub(super) const PATH_LEN_MAX: usize = 128 << 10;
/// The maximum number of subdirectory names kept per directory, and the maximum size in bytes of
/// the names kept by all levels together; each level keeps at least one.
const NAMES_MAX: usize = 1024;
const NAMES_BYTES_MAX: usize = 16 << 20;
const LIST_BUFFER: usize = 32 << 10;

/// The result of packing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Objects of all kinds.
    pub objects: u64,
    /// The size of all regular files in bytes, including holes.
    pub bytes: u64,
    /// Sockets and vanished objects, which were skipped.
    pub left_out: u64,
}

/// Writes the object at `path` below `root`, with everything below it, as a tar archive. Its first
/// entry has the object's own name, or the name `.` if `path` ends with that. Mounts below it are
/// included.
///
/// # Errors
/// If the object does not exist, an object can't be read, or `out` can't be written.
pub fn pack(root: &Root, path: &Path, holes: Holes, out: impl Write) -> Result<Packed, CopyError> {
    let object = root.object(path)?;
    let bytes = path.as_os_str().as_bytes();
    let contents_only = bytes == b"." || bytes.ends_with(b"/.");
    let name = path.file_name().filter(|_| !contents_only).unwrap_or(OsStr::new("."));
    let mut packing = Packing {
        out,
        holes,
        packed: Packed::default(),
        path: name.as_bytes().to_vec(),
        above: path.parent().filter(|_| !contents_only).unwrap_or(path).to_owned(),
        links: Links::default(),
        buffers: Buffers::new(),
        list: vec![MaybeUninit::uninit(); LIST_BUFFER],
        names_bytes: 0,
    };
    if object.kind() == FileType::Directory {
        packing.tree(&object)?;
    } else {
        packing.object(&object)?;
    }
    let Packing { mut out, packed, .. } = packing;
    pax::write_end(&mut out).and_then(|()| out.flush()).map_err(CopyError::Write)?;
    Ok(packed)
}

struct Packing<W: Write> {
    out: W,
    holes: Holes,
    packed: Packed,
    /// The path of the current object in the archive.
    path: Vec<u8>,
    /// The path of its parent, for messages.
    above: PathBuf,
    links: Links,
    buffers: Buffers,
    list: Vec<MaybeUninit<u8>>,
    /// The size of the names kept by all levels, in bytes.
    names_bytes: usize,
}

/// A directory on the way down.
struct PackLevel {
    /// The length of the directory's path in [`Packing::path`].
    path_len: usize,
    /// Subdirectories still to visit, the next one last.
    names: Vec<CString>,
    /// The directory offset at which an incomplete listing resumes.
    more: Option<u64>,
}

impl<W: Write> Packing<W> {
    fn tree(&mut self, top: &Held) -> Result<(), CopyError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(top, c".", flags, Mode::empty());
        let dir = dir.map_err(self.failed("open"))?;
        let mut descent = Descent::new(dir).map_err(self.failed("look at"))?;
        let first = self.begin(&descent)?;
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path_len);
            if let Some(name) = level.names.pop() {
                self.names_bytes = self.names_bytes.saturating_sub(name.as_bytes().len());
                match descent.enter(&name) {
                    Ok(()) => {}
                    // It was removed or replaced by another kind of object.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        self.packed.left_out += 1;
                        continue;
                    }
                    Err(errno) => {
                        self.push(&name);
                        return Err(self.failed("open")(errno));
                    }
                }
                self.push(&name);
                levels.push(self.begin(&descent)?);
            } else if let Some(from) = level.more {
                seek(descent.dir(), SeekFrom::Start(from)).map_err(self.failed("list"))?;
                self.list_into(&descent, level)?;
            } else {
                levels.pop();
                match descent.leave() {
                    Err(Errno::STALE) => return Err(CopyError::Moved(self.current_path())),
                    other => drop(other.map_err(self.failed("leave"))?),
                }
            }
        }
        Ok(())
    }

    /// Writes the current directory and its entries other than directories.
    fn begin(&mut self, descent: &Descent) -> Result<PackLevel, CopyError> {
        let stat = fstat(descent.dir()).map_err(self.failed("look at"))?;
        let xattrs =
            self.buffers.of_open(descent.dir()).map_err(self.failed("read attributes of"))?;
        self.header(&stat, EntryType::Directory, &[], xattrs, None)?;
        let mut level = PackLevel { path_len: self.path.len(), names: Vec::new(), more: None };
        self.list_into(descent, &mut level)?;
        Ok(level)
    }

    /// Continues listing the current directory: writes its entries and keeps its subdirectories for
    /// later.
    fn list_into(&mut self, descent: &Descent, level: &mut PackLevel) -> Result<(), CopyError> {
        let mut buffer = std::mem::take(&mut self.list);
        let listed = self.list_with(descent, level, &mut buffer);
        self.list = buffer;
        level.names.reverse();
        listed
    }

    fn list_with(
        &mut self,
        descent: &Descent,
        level: &mut PackLevel,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<(), CopyError> {
        level.more = None;
        let mut entries = RawDir::new(descent.dir(), buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory was removed.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(self.failed("list")(errno)),
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let held = match Held::at(descent.dir(), name) {
                Ok(held) => held,
                Err(Errno::NOENT) => {
                    self.packed.left_out += 1;
                    continue;
                }
                Err(errno) => {
                    self.push(name);
                    return Err(self.failed("look at")(errno));
                }
            };
            if held.kind() != FileType::Directory {
                self.push(name);
                self.object(&held)?;
                self.path.truncate(level.path_len);
                continue;
            }
            self.names_bytes += name.to_bytes().len();
            level.names.push(name.to_owned());
            if level.names.len() >= NAMES_MAX || self.names_bytes >= NAMES_BYTES_MAX {
                level.more = Some(entry.next_entry_cookie());
                break;
            }
        }
        Ok(())
    }

    /// Writes an object that is not a directory.
    fn object(&mut self, held: &Held) -> Result<(), CopyError> {
        let stat = held.stat();
        let entry_type = match held.kind() {
            FileType::RegularFile => EntryType::Regular,
            FileType::Symlink => EntryType::Symlink,
            FileType::Fifo => EntryType::Fifo,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            _ => {
                self.packed.left_out += 1;
                return Ok(());
            }
        };
        match self.links.meet(stat, &self.path) {
            Met::First => {}
            Met::Again(first) => {
                return self.header(stat, EntryType::Link, &first, Vec::new(), None);
            }
            Met::TooMany => return Err(CopyError::TooManyLinks(self.current_path())),
        }
        if entry_type == EntryType::Regular {
            return match held.open_file() {
                Ok(Some(file)) => self.file(file),
                Ok(None) | Err(Errno::NOENT) => {
                    self.links.forget(stat);
                    self.packed.left_out += 1;
                    Ok(())
                }
                Err(errno) => Err(self.failed("open")(errno)),
            };
        }
        let xattrs = self.buffers.of_held(held).map_err(self.failed("read attributes of"))?;
        let target = if entry_type == EntryType::Symlink {
            let target = readlinkat(held, c"", Vec::new());
            target.map_err(self.failed("read the link"))?.into_bytes()
        } else {
            Vec::new()
        };
        self.header(stat, entry_type, &target, xattrs, None)
    }

    fn file(&mut self, file: OwnedFd) -> Result<(), CopyError> {
        let stat = fstat(&file).map_err(self.failed("look at"))?;
        let xattrs = self.buffers.of_open(file.as_fd());
        let xattrs = xattrs.map_err(self.failed("read attributes of"))?;
        let shown = self.current_path();
        let content = Content::of(file, self.holes, &shown)?;
        self.header(&stat, EntryType::Regular, &[], xattrs, Some(&content))?;
        self.packed.bytes += content.size;
        let mut stored = content.data_len();
        if content.has_holes() {
            let map = pax::sparse_map(&content.data, content.size);
            self.out.write_all(&map).map_err(CopyError::Write)?;
            stored += map.len() as u64;
        }
        content.write(&mut self.out, &shown)?;
        pax::pad(stored, &mut self.out).map_err(CopyError::Write)
    }

    fn header(
        &mut self,
        stat: &Stat,
        kind: EntryType,
        link: &[u8],
        xattrs: Vec<Xattr>,
        content: Option<&Content>,
    ) -> Result<(), CopyError> {
        self.count()?;
        let mut extended = PaxRecords::default();
        for (name, value) in xattrs {
            extended.add_xattr(&name, &value);
        }
        for (what, len, limit) in [
            ("a path", self.path.len(), PATH_LEN_MAX),
            ("extended attributes", extended.byte_len(), EXTENDED_LEN_MAX),
        ] {
            if len > limit {
                return Err(CopyError::TooLong { path: self.current_path(), what, limit });
            }
        }
        let attr = attr(stat);
        let sparse = content.filter(|content| content.has_holes());
        let map_len = sparse.map_or(0, |it| pax::sparse_map(&it.data, it.size).len());
        let directory = kind == EntryType::Directory;
        if directory {
            self.path.push(b'/');
        }
        let entry = PaxEntry {
            path: &self.path,
            kind,
            link,
            attr: &attr,
            stored_len: map_len as u64 + content.map_or(0, Content::data_len),
            sparse_size: sparse.map(|content| content.size),
        };
        let written = pax::write_headers(&entry, extended, &mut self.out);
        if directory {
            self.path.pop();
        }
        written.map_err(CopyError::Write)
    }

    fn push(&mut self, name: &CStr) {
        self.path.push(b'/');
        self.path.extend_from_slice(name.to_bytes());
    }

    fn count(&mut self) -> Result<(), CopyError> {
        self.packed.objects += 1;
        if self.packed.objects > OBJECTS_MAX {
            return Err(CopyError::TooMany { limit: OBJECTS_MAX });
        }
        Ok(())
    }

    /// Returns the path of the current object, for messages.
    fn current_path(&self) -> PathBuf {
        // The entries of `.` are named `./NAME`.
        let path = self.path.strip_prefix(b"./").unwrap_or(&self.path);
        self.above.join(OsStr::from_bytes(path))
    }

    /// For `map_err`. Builds the path only on failure.
    fn failed(&self, what: &'static str) -> impl FnOnce(Errno) -> CopyError {
        move |errno| CopyError::io(what, &self.current_path())(errno)
    }
}

fn attr(stat: &Stat) -> Attr {
    let kind = FileKind::from_mode(stat.st_mode).unwrap_or(FileKind::Regular);
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Attr {
        kind,
        // The mask leaves 12 bits.
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        mtime: mtime(stat),
        device: Device { major, minor },
    }
}

pub(super) fn mtime(stat: &Stat) -> Timestamp {
    Timestamp { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}
