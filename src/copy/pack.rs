//! From objects to a tar archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::error::CopyError;
use super::place::{Root, below, regular};

/// How many objects one copy may have.
pub(super) const OBJECTS_MAX: u64 = 16 << 20;

/// What was put into an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Objects of all kinds.
    pub objects: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Sockets and vanished objects, which were left out.
    pub left_out: u64,
}

/// Writes the object at `path` below `root`, with all below it, as a tar archive whose first entry has
/// the object's own name. What is mounted below it is taken, too.
///
/// # Errors
/// If there is no such object, one can't be read, or `out` can't be written.
pub fn pack(root: &Root, path: &Path, out: impl Write) -> Result<Packed, CopyError> {
    let (object, stat) = root.object(path)?;
    let mut builder = Builder::new(out);
    builder.sparse(false);
    let mut packing = Packing { builder, packed: Packed::default() };
    let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        packing.tree(&object, &stat, &name, path)?;
    } else {
        packing.single(root, path, &stat, &name)?;
    }
    let Packing { builder, packed } = packing;
    builder.into_inner().and_then(|mut out| out.flush()).map_err(CopyError::Write)?;
    Ok(packed)
}

struct Packing<W: Write> {
    builder: Builder<W>,
    packed: Packed,
}

impl<W: Write> Packing<W> {
    /// An object that is no directory.
    fn single(
        &mut self,
        root: &Root,
        path: &Path,
        stat: &Stat,
        name: &Path,
    ) -> Result<(), CopyError> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let base = path.file_name().unwrap_or(OsStr::new("."));
        let (dir, _) = root.object(&parent.join("."))?;
        self.object(&dir, base.as_bytes(), stat, name, path)
    }

    fn tree(
        &mut self,
        top: &OwnedFd,
        stat: &Stat,
        name: &Path,
        shown: &Path,
    ) -> Result<(), CopyError> {
        self.directory(stat, name, shown)?;
        let mut left = vec![PathBuf::new()];
        while let Some(at) = left.pop() {
            let place = shown.join(&at);
            let dir = match below(top.as_fd(), &at) {
                Ok(dir) => dir,
                // Removed, or not a directory any more.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !at.as_os_str().is_empty() => {
                    self.packed.left_out += 1;
                    continue;
                }
                Err(errno) => return Err(CopyError::io("open", &place)(errno)),
            };
            let entries = Dir::read_from(&dir).map_err(CopyError::io("list", &place))?;
            for entry in entries {
                let entry = entry.map_err(CopyError::io("list", &place))?;
                let entry_name = entry.file_name().to_bytes();
                if matches!(entry_name, b"." | b"..") {
                    continue;
                }
                let child = at.join(OsStr::from_bytes(entry_name));
                let stat = match statat(&dir, entry_name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => {
                        self.packed.left_out += 1;
                        continue;
                    }
                    Err(errno) => {
                        return Err(CopyError::io("look at", &shown.join(&child))(errno));
                    }
                };
                let as_name = name.join(&child);
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    self.directory(&stat, &as_name, &shown.join(&child))?;
                    left.push(child);
                } else {
                    self.object(&dir, entry_name, &stat, &as_name, &shown.join(&child))?;
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, stat: &Stat, name: &Path, shown: &Path) -> Result<(), CopyError> {
        self.count(shown)?;
        let mut header = header(stat, EntryType::Directory, 0);
        self.builder.append_data(&mut header, name, io::empty()).map_err(CopyError::Write)
    }

    fn object(
        &mut self,
        dir: &OwnedFd,
        base: &[u8],
        stat: &Stat,
        name: &Path,
        shown: &Path,
    ) -> Result<(), CopyError> {
        let entry_type = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.file(dir, base, name, shown),
            FileType::Symlink => {
                let target = match readlinkat(dir, base, Vec::new()) {
                    Ok(target) => target,
                    Err(Errno::NOENT | Errno::INVAL) => {
                        self.packed.left_out += 1;
                        return Ok(());
                    }
                    Err(errno) => return Err(CopyError::io("read the link", shown)(errno)),
                };
                self.count(shown)?;
                let mut header = header(stat, EntryType::Symlink, 0);
                let target = OsStr::from_bytes(target.as_bytes());
                let linked = self.builder.append_link(&mut header, name, target);
                return linked.map_err(CopyError::Write);
            }
            FileType::Fifo => EntryType::Fifo,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            _ => {
                self.packed.left_out += 1;
                return Ok(());
            }
        };
        self.count(shown)?;
        let mut header = header(stat, entry_type, 0);
        let numbered = header
            .set_device_major(rustix::fs::major(stat.st_rdev))
            .and_then(|()| header.set_device_minor(rustix::fs::minor(stat.st_rdev)));
        numbered.map_err(CopyError::io("note the numbers of", shown))?;
        self.builder.append_data(&mut header, name, io::empty()).map_err(CopyError::Write)
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        base: &[u8],
        name: &Path,
        shown: &Path,
    ) -> Result<(), CopyError> {
        let file = match regular(dir, base) {
            Ok(Some(file)) => file,
            Ok(None) | Err(Errno::NOENT) => {
                self.packed.left_out += 1;
                return Ok(());
            }
            Err(errno) => return Err(CopyError::io("open", shown)(errno)),
        };
        self.count(shown)?;
        let stat = fstat(&file).map_err(CopyError::io("look at", shown))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = header(&stat, EntryType::Regular, size);
        let mut bytes = Counted { file: File::from(file).take(size), read: 0, failed: None };
        let written = self.builder.append_data(&mut header, name, &mut bytes);
        if let Some(error) = bytes.failed {
            return Err(CopyError::io("read", shown)(error));
        }
        if bytes.read < size {
            return Err(CopyError::Shrunk(shown.to_owned()));
        }
        self.packed.bytes += size;
        written.map_err(CopyError::Write)
    }

    fn count(&mut self, shown: &Path) -> Result<(), CopyError> {
        self.packed.objects += 1;
        if self.packed.objects > OBJECTS_MAX {
            tracing::debug!(path = %shown.display(), "too many objects");
            return Err(CopyError::TooMany { limit: OBJECTS_MAX });
        }
        Ok(())
    }
}

/// Tells errors of reading a file from those of writing the archive.
struct Counted {
    file: io::Take<File>,
    read: u64,
    failed: Option<io::Error>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(len) => {
                self.read += len as u64;
                Ok(len)
            }
            Err(error) => {
                self.failed = Some(io::Error::new(error.kind(), error.to_string()));
                Err(error)
            }
        }
    }
}

fn header(stat: &Stat, entry_type: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}
