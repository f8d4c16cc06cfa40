//! Unpacks a tar archive into objects.
//!
//! Both the archive and the target may be hostile. Every directory is reached through descriptors
//! from the target down, without following symlinks. A directory gets its attributes when the
//! archive leaves it, so that only the way down must be remembered.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use inlay_base::descent::Descent;
use inlay_images::import::tar::{Archive, Body, EndMark, Entry};
use inlay_store::format::Timestamp;
use inlay_store::tree::{Meta, NodeKind};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::error::CopyError;
use super::install::{
    NewFile, Slot, finish_open, make_directory, put_fifo, put_link, put_symlink, set_time,
};
use super::pack::{OBJECTS_MAX, mtime};
use super::resolve::Place;
use super::xattrs::FilePrivileges;

/// The ownership of the copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// That of the originals, by number.
    Kept,
    /// A given user and group.
    Given {
        /// The user id.
        uid: u32,
        /// The group id.
        gid: u32,
    },
}

/// The attributes that copies keep besides content, permissions and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Their ownership.
    pub owners: Owners,
    /// The privileges that files grant when executed.
    pub privileges: FilePrivileges,
}

/// The result of unpacking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Objects created.
    pub objects: u64,
    /// The size of all regular files in bytes, including holes.
    pub bytes: u64,
    /// Devices and sockets, which were skipped.
    pub left_out: u64,
    /// Extended attributes that the target's filesystem, or this user's privileges, do not allow.
    pub attributes_left_out: u64,
}

/// The maximum number of completed directories to remember in case the archive returns to them.
const LEFT_MAX: usize = 100_000;
/// The maximum number of top-level names of an archive to remember.
const TOPS_MAX: usize = 100_000;
/// The maximum number of bytes of a name in a message.
const SHOWN_MAX: usize = 4096;
/// The maximum depth of directories.
const DEPTH_MAX: usize = 1 << 16;

/// Creates the objects of a tar archive, plain or compressed with gzip or zstd, at `place`.
/// Existing objects are replaced once the new one is complete; directories are merged.
///
/// # Errors
/// If the archive is damaged, escapes the target, or an object can't be created. The objects
/// created so far remain.
pub fn unpack(
    place: &Place,
    input: impl Read + Send + 'static,
    keep: Keep,
) -> Result<Unpacked, CopyError> {
    let mut archive = Archive::of(Box::new(input), "the archive", EndMark::Required)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(&place.dir, c".", flags, Mode::empty());
    let descent = root.and_then(Descent::new).map_err(CopyError::io("open", &place.path))?;
    let mut unpacking = Unpacking {
        place,
        keep,
        unpacked: Unpacked::default(),
        descent,
        levels: Vec::new(),
        below: Vec::new(),
        left: HashMap::new(),
        own_name: None,
        tops: HashSet::new(),
        buffer: vec![0; 128 << 10],
    };
    while let Some(entry) = archive.next_entry()? {
        unpacking.entry(&entry, &mut archive)?;
    }
    unpacking.up(0)?;
    archive.finish()?;
    Ok(unpacking.unpacked)
}

struct Unpacking<'p> {
    place: &'p Place,
    keep: Keep,
    unpacked: Unpacked,
    descent: Descent,
    /// The directories on the way down to the current one.
    levels: Vec<UnpackLevel>,
    /// The path from the place down to the current directory, for messages, with a trailing slash.
    below: Vec<u8>,
    /// The modification times of completed directories, by device and inode.
    left: HashMap<(u64, u64), Timestamp>,
    /// The top-level name in the archive, if the copy gets another one.
    own_name: Option<Box<[u8]>>,
    /// Top-level names, in the target, of the objects unpacked so far.
    tops: HashSet<Box<[u8]>>,
    buffer: Vec<u8>,
}

struct UnpackLevel {
    name: CString,
    due: Due,
}

/// The attributes to set on a directory when the archive leaves it.
enum Due {
    Nothing,
    /// The archive has visited and completed it before.
    Time(Timestamp),
    Everything(Meta),
}

/// A path below the place, as components.
type Names<'n> = Vec<&'n [u8]>;

impl<'p> Unpacking<'p> {
    fn entry(&mut self, entry: &Entry, archive: &mut Archive) -> Result<(), CopyError> {
        if self.unpacked.objects >= OBJECTS_MAX {
            return Err(CopyError::TooMany { limit: OBJECTS_MAX });
        }
        self.check_top(&entry.name)?;
        let names = self.target(&entry.name)?;
        // The contents of a directory were packed: this entry is the directory itself, which
        // exists.
        let Some((name, parent)) = names.split_last() else { return Ok(()) };
        self.go(parent)?;
        let name = &c_name(name)?;
        let shown = self.path_of(name);
        let (keep, meta) = (self.keep, &entry.meta);
        let slot = Slot { dir: self.descent.dir(), name, shown: &shown };
        let left_out = match &entry.body {
            Body::Node(NodeKind::Directory) => {
                make_directory(slot)?;
                self.enter(name)?;
                if let Some(level) = self.levels.last_mut() {
                    level.due = Due::Everything(meta.clone());
                }
                0
            }
            Body::Regular { size, data } => {
                let mut new = NewFile::new(slot)?;
                write(archive, &mut new.file, &mut self.buffer, (*size, data), &shown)?;
                let left_out = new.commit(meta, keep)?;
                self.unpacked.bytes += size;
                left_out
            }
            Body::Node(NodeKind::Symlink(target)) => put_symlink(slot, target, meta, keep)?,
            Body::Node(NodeKind::Fifo) => put_fifo(slot, meta, keep)?,
            Body::HardLink(first) => {
                let (dir, first) = self.linked(first)?;
                put_link(slot, dir.as_fd(), &first)?;
                0
            }
            Body::Node(_) => {
                self.unpacked.left_out += 1;
                return Ok(());
            }
        };
        // Only now: a hard link must not make its own target count as part of the archive.
        self.note_top(&names);
        self.unpacked.objects += 1;
        self.unpacked.attributes_left_out += left_out;
        Ok(())
    }

    /// Ensures that only one top-level object gets the requested name: further ones would replace
    /// it or merge with it.
    fn check_top(&mut self, name: &[u8]) -> Result<(), CopyError> {
        if self.place.name.is_none() {
            return Ok(());
        }
        let top = top(name);
        match &self.own_name {
            Some(own) if **own != *top => Err(CopyError::SeveralTops {
                path: self.place.path.clone(),
                first: own.iter().copied().take(SHOWN_MAX).collect(),
                other: top.iter().copied().take(SHOWN_MAX).collect(),
            }),
            Some(_) => Ok(()),
            None => {
                self.own_name = Some(top.into());
                Ok(())
            }
        }
    }

    /// Returns the path of an entry relative to the place's directory; fails if it would escape it.
    fn target<'n>(&self, name: &'n [u8]) -> Result<Names<'n>, CopyError>
    where
        'p: 'n,
    {
        let wrong = || CopyError::Name { name: name.iter().copied().take(SHOWN_MAX).collect() };
        let mut names = Names::new();
        let mut parts = name.split(|byte| *byte == b'/').enumerate();
        if let Some(given) = self.place.name.as_deref() {
            // The first component is the copied object's own name.
            match parts.next() {
                Some((_, first)) if !first.is_empty() && first != b".." => {}
                _ => return Err(wrong()),
            }
            names.push(given);
        }
        for (place, part) in parts {
            match part {
                b"" if place == 0 => return Err(wrong()),
                b"" | b"." => {}
                b".." => return Err(wrong()),
                part => names.push(part),
            }
        }
        if names.len() > DEPTH_MAX {
            return Err(wrong());
        }
        Ok(names)
    }

    fn note_top(&mut self, names: &Names<'_>) {
        if let Some(top) = names.first()
            && self.tops.len() < TOPS_MAX
            && !self.tops.contains(*top)
        {
            self.tops.insert((*top).into());
        }
    }

    /// Makes the directory `names` the current one. Creates directories that the archive does not
    /// mention.
    fn go(&mut self, names: &[&[u8]]) -> Result<(), CopyError> {
        let same = |(at, to): &(&UnpackLevel, &&[u8])| at.name.as_bytes() == **to;
        let common = self.levels.iter().zip(names).take_while(same).count();
        self.up(common)?;
        for name in names.get(common..).unwrap_or(&[]) {
            let name = &c_name(name)?;
            match self.enter(name) {
                Err(error) if error.is_not_found() => {
                    let shown = self.path_of(name);
                    let slot = Slot { dir: self.descent.dir(), name, shown: &shown };
                    make_directory(slot)?;
                    self.enter(name)?;
                    if let Some(level) = self.levels.last_mut() {
                        let now = fstat(self.descent.dir());
                        let now = now.map_err(CopyError::io("look at", &shown))?;
                        let meta = Meta { perm: 0o755, mtime: mtime(&now), ..Meta::default() };
                        level.due = Due::Everything(meta);
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn enter(&mut self, name: &CStr) -> Result<(), CopyError> {
        let entered = self.descent.enter(name);
        entered.map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => CopyError::InTheWay {
                path: self.path_of(name),
                why: "it is no directory, and the copy has something below it",
            },
            errno => CopyError::io("open", &self.path_of(name))(errno),
        })?;
        let due = self.left.get(&self.descent.id()).map_or(Due::Nothing, |time| Due::Time(*time));
        if !(self.place.name.is_some() && self.levels.is_empty()) {
            self.below.extend_from_slice(name.to_bytes());
            self.below.push(b'/');
        }
        self.levels.push(UnpackLevel { name: name.to_owned(), due });
        Ok(())
    }

    /// Leaves directories until `depth` remain, and sets the due attributes of each.
    fn up(&mut self, depth: usize) -> Result<(), CopyError> {
        while self.levels.len() > depth {
            let shown = self.path_of(c"");
            let id = self.descent.id();
            let dir = match self.descent.leave() {
                Ok(Some(dir)) => dir,
                Ok(None) => return Ok(()),
                Err(Errno::STALE) => return Err(CopyError::Moved(shown)),
                Err(errno) => return Err(CopyError::io("leave", &shown)(errno)),
            };
            let Some(level) = self.levels.pop() else { return Ok(()) };
            let above = self.below.len().saturating_sub(level.name.as_bytes().len() + 1);
            self.below.truncate(above);
            let mtime = match level.due {
                Due::Nothing => continue,
                Due::Time(mtime) => {
                    set_time(dir.as_fd(), mtime, &shown)?;
                    mtime
                }
                Due::Everything(meta) => {
                    let kind = FileType::Directory;
                    let left_out = finish_open(dir.as_fd(), kind, &meta, self.keep, &shown)?;
                    self.unpacked.attributes_left_out += left_out;
                    meta.mtime
                }
            };
            if self.left.len() < LEFT_MAX {
                self.left.insert(id, mtime);
            }
        }
        Ok(())
    }

    /// Returns the directory and the name of a file unpacked earlier from this archive.
    fn linked(&self, name: &[u8]) -> Result<(OwnedFd, CString), CopyError> {
        let wrong = || CopyError::Link { name: name.iter().copied().take(SHOWN_MAX).collect() };
        let names = self.target(name)?;
        let Some((last, parent)) = names.split_last() else { return Err(wrong()) };
        if self.own_name.as_deref().is_some_and(|own| own != top(name)) {
            return Err(wrong());
        }
        // Otherwise it could be a file that existed before and must not be exposed through a link.
        if !names.first().is_some_and(|top| self.tops.contains(*top)) {
            return Err(wrong());
        }
        let failed =
            |errno| CopyError::io("find the target of the hard link at", &self.place.path)(errno);
        let open = |dir: BorrowedFd<'_>, name: &CStr| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(dir, name, flags, Mode::empty()).map_err(failed)
        };
        let mut dir = open(self.place.dir.as_fd(), c".")?;
        for name in parent {
            dir = open(dir.as_fd(), &c_name(name)?)?;
        }
        Ok((dir, c_name(last)?))
    }

    /// Returns the path of `name` in the current directory, for messages.
    fn path_of(&self, name: &CStr) -> PathBuf {
        // The place's path already includes the name of the copy.
        if self.place.name.is_some() && self.levels.is_empty() {
            return self.place.path.clone();
        }
        self.place.path.join(OsStr::from_bytes(&[&*self.below, name.to_bytes()].concat()))
    }
}

/// Returns the first component of a path in an archive.
fn top(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == b'/').next().unwrap_or(name)
}

/// Converts a name for syscalls. One that contains a NUL would be cut there.
fn c_name(name: &[u8]) -> Result<CString, CopyError> {
    CString::new(name).map_err(|_| CopyError::Name { name: name.to_owned() })
}

/// Writes the data of the current entry, leaving holes between its ranges.
fn write(
    archive: &mut Archive,
    file: &mut std::fs::File,
    buffer: &mut [u8],
    (size, data): (u64, &[Range<u64>]),
    shown: &std::path::Path,
) -> Result<(), CopyError> {
    let failed = || CopyError::io("write", shown);
    let mut at = 0;
    for range in data {
        if range.start != at {
            file.seek(SeekFrom::Start(range.start)).map_err(failed())?;
        }
        let mut left = range.end - range.start;
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let read = archive.read(buffer.get_mut(..most).unwrap_or(&mut []));
            let len = match read {
                Ok(0) => return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) => len,
                Err(error) => {
                    return Err(archive
                        .take_failure()
                        .map_or_else(|| CopyError::Read(error), CopyError::from));
                }
            };
            file.write_all(buffer.get(..len).unwrap_or(&[])).map_err(failed())?;
            left -= len as u64;
        }
        at = range.end;
    }
    if at != size {
        file.set_len(size).map_err(failed())?;
    }
    Ok(())
}
