//! From a tar archive to objects.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat,
    chownat, linkat, mkdirat, mknodat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::error::CopyError;
use super::pack::OBJECTS_MAX;
use super::place::{Place, below};

/// Whose the copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Whose the originals were, by number.
    Kept,
    /// This user's and group's.
    Given {
        /// The user's number.
        uid: u32,
        /// The group's number.
        gid: u32,
    },
}

/// What came out of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Objects that were made.
    pub objects: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Devices and what is not known, which were left out.
    pub left_out: u64,
}

/// The name of a file that is not whole yet.
const PARTIAL: &[u8] = b".inlay-copy.partial";

/// Makes the objects of a tar archive at `place`. A file that is there is replaced when the new one is
/// whole; directories are joined.
///
/// # Errors
/// If the archive is damaged, leads elsewhere, or an object can't be made. What was made stays.
pub fn unpack(place: &Place, input: impl Read, owners: Owners) -> Result<Unpacked, CopyError> {
    let mut unpacking =
        Unpacking { place, owners, unpacked: Unpacked::default(), directories: Vec::new() };
    let mut archive = Archive::new(input);
    for entry in archive.entries().map_err(CopyError::Read)? {
        unpacking.entry(&mut entry.map_err(CopyError::Read)?)?;
    }
    unpacking.finish_directories()?;
    Ok(unpacking.unpacked)
}

struct Unpacking<'p> {
    place: &'p Place,
    owners: Owners,
    unpacked: Unpacked,
    /// What directories get when everything is in them.
    directories: Vec<(PathBuf, Attributes)>,
}

#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
}

impl Unpacking<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), CopyError> {
        if self.unpacked.objects >= OBJECTS_MAX {
            return Err(CopyError::TooMany { limit: OBJECTS_MAX });
        }
        let path = self.target(&entry.path_bytes())?;
        let shown = self.place.path.join(&path);
        let attributes = self.attributes(entry)?;
        if path.as_os_str().is_empty() {
            // The contents of a directory: the directory itself is there.
            return Ok(());
        }
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
        let name = name.unwrap_or(OsStr::new("")).as_bytes();
        let dir = below(self.place.dir.as_fd(), parent);
        let dir = dir.map_err(CopyError::io("open the directory of", &shown))?;
        match entry.header().entry_type() {
            EntryType::Directory => {
                make_directory(&dir, name, &shown)?;
                self.directories.push((path, attributes));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, &dir, name, attributes, &shown)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                clear(&dir, name, &shown)?;
                let made = symlinkat(target.as_slice(), &dir, name);
                made.map_err(CopyError::io("make the link", &shown))?;
                own(&dir, name, attributes, &shown)?;
                time(&dir, name, attributes, &shown)?;
            }
            EntryType::Link => self.link(entry, &dir, name, &shown)?,
            EntryType::Fifo => {
                clear(&dir, name, &shown)?;
                let made = mknodat(&dir, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0);
                made.map_err(CopyError::io("make the pipe", &shown))?;
                finish(&dir, name, attributes, &shown)?;
            }
            _ => {
                self.unpacked.left_out += 1;
                return Ok(());
            }
        }
        self.unpacked.objects += 1;
        Ok(())
    }

    /// Where an entry goes, relative to the place's directory.
    fn target(&self, name: &[u8]) -> Result<PathBuf, CopyError> {
        let wrong = || CopyError::Name { name: String::from_utf8_lossy(name).into_owned() };
        let mut path = PathBuf::new();
        let mut components = Path::new(OsStr::from_bytes(name)).components();
        if let Some(given) = &self.place.name {
            // The first is the copied object's own name.
            match components.next() {
                Some(Component::Normal(_) | Component::CurDir) => {}
                _ => return Err(wrong()),
            }
            path.push(OsStr::from_bytes(given));
        }
        for component in components {
            match component {
                Component::Normal(part) => path.push(part),
                Component::CurDir => {}
                _ => return Err(wrong()),
            }
        }
        Ok(path)
    }

    fn attributes<R: Read>(&self, entry: &Entry<'_, R>) -> Result<Attributes, CopyError> {
        let header = entry.header();
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX - 1);
        let (uid, gid) = match self.owners {
            Owners::Given { uid, gid } => (uid, gid),
            Owners::Kept => (
                number(header.uid().map_err(CopyError::Read)?),
                number(header.gid().map_err(CopyError::Read)?),
            ),
        };
        Ok(Attributes {
            mode: header.mode().map_err(CopyError::Read)? & 0o7777,
            uid,
            gid,
            mtime: i64::try_from(header.mtime().map_err(CopyError::Read)?).unwrap_or(0),
        })
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        dir: &OwnedFd,
        name: &[u8],
        attributes: Attributes,
        shown: &Path,
    ) -> Result<(), CopyError> {
        match unlinkat(dir, PARTIAL, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(CopyError::io("replace a partial copy of", shown)(errno)),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, PARTIAL, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.map_err(CopyError::io("write", shown))?);
        let written = write(entry, &mut file, shown).and_then(|bytes| {
            finish(dir, PARTIAL, attributes, shown)?;
            renameat(dir, PARTIAL, dir, name).map_err(CopyError::io("put in place", shown))?;
            Ok(bytes)
        });
        if written.is_err() {
            let _ = unlinkat(dir, PARTIAL, AtFlags::empty());
        }
        self.unpacked.bytes += written?;
        Ok(())
    }

    /// One more name for a file that this archive brought before.
    fn link<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        dir: &OwnedFd,
        name: &[u8],
        shown: &Path,
    ) -> Result<(), CopyError> {
        let target = self.target(&entry.link_name_bytes().unwrap_or_default())?;
        let parent = target.parent().unwrap_or(Path::new(""));
        let base = target.file_name().unwrap_or(OsStr::new("")).as_bytes();
        let from = below(self.place.dir.as_fd(), parent);
        let from = from.map_err(CopyError::io("find what is linked to at", shown))?;
        clear(dir, name, shown)?;
        let linked = linkat(&from, base, dir, name, AtFlags::empty());
        linked.map_err(CopyError::io("link", shown))
    }

    /// Those furthest down first, so that times stay.
    fn finish_directories(&mut self) -> Result<(), CopyError> {
        for (path, attributes) in self.directories.drain(..).rev() {
            let shown = self.place.path.join(&path);
            let parent = path.parent().unwrap_or(Path::new(""));
            let name = path.file_name().unwrap_or(OsStr::new(".")).as_bytes();
            let dir = below(self.place.dir.as_fd(), parent);
            let dir = dir.map_err(CopyError::io("open the directory of", &shown))?;
            finish(&dir, name, attributes, &shown)?;
        }
        Ok(())
    }
}

fn write<R: Read>(
    entry: &mut Entry<'_, R>,
    file: &mut File,
    shown: &Path,
) -> Result<u64, CopyError> {
    let size = entry.size();
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        let len = entry.read(&mut buffer).map_err(CopyError::Read)?;
        let bytes = match buffer.get(..len) {
            Some(bytes) if !bytes.is_empty() => bytes,
            // The library does not tell a cut archive from the end of an entry.
            _ if total < size => {
                return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            _ => return Ok(total),
        };
        io::Write::write_all(file, bytes).map_err(CopyError::io("write", shown))?;
        total += len as u64;
    }
}

fn make_directory(dir: &OwnedFd, name: &[u8], shown: &Path) -> Result<(), CopyError> {
    match mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(CopyError::io("look at", shown))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                return Ok(());
            }
            let why = "it is no directory, and the copy is";
            Err(CopyError::InTheWay { path: shown.to_owned(), why })
        }
        Err(errno) => Err(CopyError::io("make the directory", shown)(errno)),
    }
}

/// Makes room for an object that is neither a directory nor a regular file.
fn clear(dir: &OwnedFd, name: &[u8], shown: &Path) -> Result<(), CopyError> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(CopyError::io("replace", shown)(errno)),
    }
}

/// Owner, permissions and time of modification. The object is this process's own, under a name that
/// may be given to something else at any moment; none of these follows symbolic links.
fn finish(
    dir: &OwnedFd,
    name: &[u8],
    attributes: Attributes,
    shown: &Path,
) -> Result<(), CopyError> {
    own(dir, name, attributes, shown)?;
    // fchmodat(2) follows links, so the object is held.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = openat(dir, name, flags, Mode::empty());
    let object = object.map_err(CopyError::io("open", shown))?;
    let stat = rustix::fs::fstat(&object).map_err(CopyError::io("look at", shown))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        use std::os::fd::AsRawFd;
        let held = format!("/proc/self/fd/{}", object.as_raw_fd());
        chmodat(CWD, held, Mode::from_raw_mode(attributes.mode), AtFlags::empty())
            .map_err(CopyError::io("set the permissions of", shown))?;
    }
    time(dir, name, attributes, shown)
}

fn own(dir: &OwnedFd, name: &[u8], attributes: Attributes, shown: &Path) -> Result<(), CopyError> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    match chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) => Ok(()),
        // Who is not root keeps what it makes.
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
        Err(errno) => Err(CopyError::io("set the owner of", shown)(errno)),
    }
}

fn time(dir: &OwnedFd, name: &[u8], attributes: Attributes, shown: &Path) -> Result<(), CopyError> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: attributes.mtime, tv_nsec: 0 },
    };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(CopyError::io("set the time of", shown))
}
