//! Decides whether an overlay copies up only metadata when only a file's metadata changes
//! (`metacopy`).
//!
//! With it, chmod(2) and chown(2) of a snapshot's file neither fetch nor copy its content. But when
//! a metadata-only file is renamed to another directory or linked, it must record the file with the
//! content by its path from the snapshot's root. The kernel has 255 bytes for that and fails with
//! `EXDEV` for longer paths. So a snapshot with longer paths is mounted without `metacopy`: there,
//! chmod and chown copy the file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, lgetxattr, openat, statat};
use rustix::io::Errno;

/// The longest path that the kernel can record, in bytes, including the leading slash.
const NOTED_MAX: u32 = 255;
/// The attribute that marks a metadata-only file.
const METACOPY: &str = "trusted.overlay.metacopy";
/// The limits of the scan for earlier metadata-only copies: depth and number of entries.
const DEPTH_MAX: usize = 128;
const ENTRIES_MAX: usize = 1 << 20;

/// Whether chmod and chown copy up only metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metacopy {
    /// Only metadata.
    On,
    /// Metadata and content.
    Off,
}

impl Metacopy {
    /// Returns the value of the mount option.
    pub(super) const fn option(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// Chooses for a snapshot whose longest path has `longest` bytes, below an overlay with
    /// `upper`.
    ///
    /// Without the option, the kernel refuses to open metadata-only files. An upper directory that
    /// may hold any, from an earlier version, is therefore mounted with it.
    pub(super) fn choose(longest: u32, upper: &Path) -> io::Result<Self> {
        if longest <= NOTED_MAX || may_have_metacopies(upper)? {
            return Ok(Self::On);
        }
        Ok(Self::Off)
    }
}

/// Reports whether `upper` has a metadata-only file, or is too large to find out.
fn may_have_metacopies(upper: &Path) -> io::Result<bool> {
    let mut levels = vec![level(CWD, upper)?];
    let mut entries = 0;
    while let Some((dir, listing)) = levels.last_mut() {
        let Some(entry) = listing.next().transpose()? else {
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        entries += 1;
        if entries > ENTRIES_MAX {
            return Ok(true);
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        match kind {
            FileType::Directory => {
                let next = level(&*dir, name)?;
                levels.push(next);
                if levels.len() > DEPTH_MAX {
                    return Ok(true);
                }
            }
            FileType::RegularFile if is_metacopy(dir, name.to_bytes())? => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

fn level(
    parent: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg,
) -> Result<(OwnedFd, Dir), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    let listing = Dir::read_from(&dir)?;
    Ok((dir, listing))
}

fn is_metacopy(dir: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let mut value = [0; 256];
    match lgetxattr(&*path, METACOPY, &mut value[..]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{XattrFlags, setxattr};

    use super::*;

    #[test]
    fn long_paths_do_without_and_earlier_copies_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path();
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::write(upper.join("a/b/copied"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", upper.join("a/link")).unwrap();
        let choose = |longest| Metacopy::choose(longest, upper).unwrap();
        assert_eq!([choose(255), choose(256)], [Metacopy::On, Metacopy::Off]);
        setxattr(upper.join("a/b/copied"), METACOPY, b"", XattrFlags::empty()).unwrap();
        assert_eq!([choose(255), choose(256)], [Metacopy::On, Metacopy::On]);
    }

    #[test]
    fn metacopy_stays_on_for_trees_too_deep_to_scan() {
        let dir = tempfile::tempdir().unwrap();
        let deep = (0..=DEPTH_MAX).fold(dir.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(deep).unwrap();
        assert_eq!(Metacopy::choose(u32::MAX, dir.path()).unwrap(), Metacopy::On);
    }
}
