//! Walks directories that untrusted programs modify concurrently: by descriptor, without following
//! symbolic links, with a bounded number of open descriptors at any depth.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;

/// Maximum directories on the path that stay open. Those above are reopened through `..`.
const OPEN_MAX: usize = 32;

/// A position below a root directory, and the way back up.
#[derive(Debug)]
pub struct Descent {
    root: OwnedFd,
    /// Directories from below the root down to the current one.
    levels: Vec<DescentLevel>,
    root_id: Id,
}

#[derive(Debug)]
struct DescentLevel {
    fd: Option<OwnedFd>,
    id: Id,
}

/// Identity of a directory: device and inode.
type Id = (u64, u64);

impl Descent {
    /// Starts in `root`, a directory open for reading.
    ///
    /// # Errors
    ///
    /// If `fstat` of `root` fails.
    pub fn new(root: OwnedFd) -> Result<Self, Errno> {
        let root_id = id(root.as_fd())?;
        Ok(Self { root, levels: Vec::new(), root_id })
    }

    /// Returns the current directory, open for reading.
    pub fn dir(&self) -> BorrowedFd<'_> {
        // The last level always has a descriptor: both `enter` and `leave` ensure it.
        self.levels.last().and_then(|level| level.fd.as_ref()).unwrap_or(&self.root).as_fd()
    }

    /// Depth of the current directory below the root; 0 at the root.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Device and inode of the current directory.
    pub fn id(&self) -> (u64, u64) {
        self.levels.last().map_or(self.root_id, |level| level.id)
    }

    /// Descends into `name`.
    ///
    /// # Errors
    ///
    /// `NOTDIR` or `LOOP` if `name` is not a directory, and any error of opening it.
    pub fn enter(&mut self, name: &CStr) -> Result<(), Errno> {
        let fd = openat(self.dir(), name, DIRECTORY, Mode::empty())?;
        let id = id(fd.as_fd())?;
        self.levels.push(DescentLevel { fd: Some(fd), id });
        let far = self.levels.len().checked_sub(OPEN_MAX + 1);
        if let Some(level) = far.and_then(|far| self.levels.get_mut(far)) {
            level.fd = None;
        }
        Ok(())
    }

    /// Ascends to the parent. Returns the directory just left; `None` at the root.
    ///
    /// # Errors
    ///
    /// `STALE` if the directory was moved meanwhile, so that `..` is not the directory it was
    /// entered from.
    pub fn leave(&mut self) -> Result<Option<OwnedFd>, Errno> {
        let Some(DescentLevel { fd: Some(left), .. }) = self.levels.pop() else { return Ok(None) };
        if let Some(level) = self.levels.last_mut()
            && level.fd.is_none()
        {
            let above = openat(&left, c"..", DIRECTORY, Mode::empty())?;
            if id(above.as_fd())? != level.id {
                return Err(Errno::STALE);
            }
            level.fd = Some(above);
        }
        Ok(Some(left))
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn id(dir: BorrowedFd<'_>) -> Result<Id, Errno> {
    let stat = fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn at(path: &Path) -> Descent {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Descent::new(rustix::fs::open(path, flags, Mode::empty()).unwrap()).unwrap()
    }

    #[test]
    fn the_way_back_is_the_way_down_at_any_depth() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut descent = at(dir.path());
        let depth = 3 * OPEN_MAX;
        let mut ids = vec![descent.id()];
        for _ in 0..depth {
            rustix::fs::mkdirat(descent.dir(), "d", Mode::RWXU).unwrap();
            descent.enter(c"d").unwrap();
            ids.push(descent.id());
        }
        assert_eq!(descent.depth(), depth);
        assert_eq!(descent.levels.iter().filter(|level| level.fd.is_some()).count(), OPEN_MAX);
        while let Some(id) = ids.pop() {
            assert_eq!((descent.id(), super::id(descent.dir()).unwrap()), (id, id));
            assert_eq!(descent.leave().unwrap().is_none(), ids.is_empty());
        }
        assert_eq!(descent.depth(), 0);
    }

    #[test]
    fn links_and_files_are_not_entered_and_moves_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let mut descent = at(dir.path());
        for name in [c"link", c"file"] {
            let refused = descent.enter(name).unwrap_err();
            assert!(matches!(refused, Errno::LOOP | Errno::NOTDIR), "{refused}");
        }
        let deep = dir.path().join("d/".repeat(OPEN_MAX + 2));
        fs::create_dir_all(&deep).unwrap();
        (0..OPEN_MAX + 2).for_each(|_| descent.enter(c"d").unwrap());
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::rename(dir.path().join("d/d/d"), dir.path().join("other/d")).unwrap();
        let failed = std::iter::from_fn(|| descent.leave().transpose()).find_map(Result::err);
        assert_eq!(failed, Some(Errno::STALE));
    }
}
