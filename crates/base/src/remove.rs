//! Removes directory trees created by untrusted programs.
//!
//! Neither the depth nor the shape of a tree costs stack, descriptors or path length: the walk
//! descends by descriptor to a fixed depth, and directories below it are first moved up next to the
//! others. Every step is relative to a descriptor and follows no symbolic link, so a program that
//! still writes to the tree cannot redirect the removal.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use crate::held::Held;

/// Maximum depth of the walk, beyond which directories are moved up; each level holds one
/// descriptor.
const DEPTH_MAX: usize = 48;
/// Maximum times a directory is emptied again because it is not empty afterwards.
const TRIES: u32 = 8;
/// Destination of moved directories: inside the tree, so that a crash leaves nothing outside it.
const HEAP: &CStr = c".inlay-removing";

/// Removes the object at `path` with everything below it. No-op if it does not exist.
///
/// # Errors
///
/// Any error of the filesystem. `EBUSY` if something is mounted below `path`. Idempotent: another
/// call removes the rest.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove_tree_while(path, &mut || true).map(drop)
}

/// Outcome of an interruptible removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Nothing is left.
    Whole,
    /// Interrupted. Another removal continues where this one stopped.
    Part,
}

/// Removes the object at `path` like [`remove_tree`], as long as `goes_on`, called before each
/// object, returns true.
///
/// # Errors
///
/// As for [`remove_tree`].
pub fn remove_tree_while(path: &Path, goes_on: &mut dyn FnMut() -> bool) -> io::Result<Removed> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, parent.unwrap_or(Path::new(".")), flags, Mode::empty()) {
        Ok(parent) => remove_at(parent.as_fd(), name, goes_on),
        Err(Errno::NOENT) => Ok(Removed::Whole),
        Err(errno) => Err(errno.into()),
    }
}

fn remove_at(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    goes_on: &mut dyn FnMut() -> bool,
) -> io::Result<Removed> {
    let name = CString::new(name.as_encoded_bytes())?;
    for _ in 0..TRIES {
        let top = match open(parent, &name) {
            Ok(top) => top,
            Err(Errno::NOENT) => return Ok(Removed::Whole),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                unlink(parent, &name)?;
                return Ok(Removed::Whole);
            }
            Err(errno) => return Err(errno.into()),
        };
        match (Removal { top, heap: None, next: 0, goes_on }).run() {
            Err(Stop::Interrupted) => return Ok(Removed::Part),
            Err(Stop::Failed(errno)) => return Err(errno.into()),
            Ok(()) => {}
        }
        match unlinkat(parent, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Removed::Whole),
            // Filled again by a program that still has it open.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::NOTEMPTY.into())
}

/// A directory on the current path.
struct RemovalLevel {
    dir: Dir,
    name: CString,
    tries: u32,
}

/// The reason a removal stopped early.
enum Stop {
    Interrupted,
    Failed(Errno),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

struct Removal<'a> {
    top: OwnedFd,
    heap: Option<OwnedFd>,
    /// Next name in the heap.
    next: u64,
    goes_on: &'a mut dyn FnMut() -> bool,
}

impl Removal<'_> {
    fn run(mut self) -> Result<(), Stop> {
        let top = openat(&self.top, c".", DIRECTORY, Mode::empty())?;
        self.empty(top, Some(HEAP))?;
        loop {
            // Also empties the heap of an interrupted removal.
            let heap = match open(self.top.as_fd(), HEAP) {
                Ok(heap) => heap,
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlink(self.top.as_fd(), HEAP)?),
                Err(errno) => return Err(errno.into()),
            };
            self.empty(heap, None)?;
            match unlinkat(&self.top, HEAP, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Directories moved there while it was emptied.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Removes everything in `dir` except `except` and directories moved to the heap.
    fn empty(&mut self, dir: OwnedFd, except: Option<&CStr>) -> Result<(), Stop> {
        let mut levels =
            vec![RemovalLevel { dir: Dir::new(dir)?, name: CString::default(), tries: 0 }];
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else { return Ok(()) };
            let Some(entry) = level.dir.read() else {
                let Some(done) = levels.pop() else { return Ok(()) };
                if let Some(above) = levels.last() {
                    levels.extend(left(above, done)?);
                }
                continue;
            };
            let entry = entry?;
            let name = entry.file_name();
            let kept = depth == 1 && except == Some(name);
            if kept || matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if !(self.goes_on)() {
                return Err(Stop::Interrupted);
            }
            let dir = level.dir.fd()?;
            let may_be_directory =
                matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            if !may_be_directory {
                match unlink(dir, name) {
                    // Replaced by a directory since it was listed.
                    Err(Errno::ISDIR) => {}
                    other => {
                        other?;
                        continue;
                    }
                }
            }
            match open(dir, name) {
                Ok(_) if depth >= DEPTH_MAX => self.set_aside(dir, name)?,
                Ok(below) => {
                    let (dir, name) = (Dir::new(below)?, name.to_owned());
                    levels.push(RemovalLevel { dir, name, tries: 0 });
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => unlink(dir, name)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Moves the directory `name` in `dir` to the heap.
    fn set_aside(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let heap = match &self.heap {
            Some(heap) => heap,
            none => {
                match mkdirat(&self.top, HEAP, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                debug_assert!(none.is_none());
                self.heap.insert(open(self.top.as_fd(), HEAP)?)
            }
        };
        let mut opened_up = false;
        loop {
            let place = self.next.to_string();
            self.next += 1;
            match renameat(dir, name, heap, &place) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Left by an interrupted removal, or put there by the tree's owner.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
                // Moving a directory rewrites its `..`, which without root requires write
                // permission.
                Err(Errno::ACCESS) if !opened_up => {
                    opened_up = true;
                    permit(dir, name)?;
                }
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Removes an emptied directory. Returns it for another pass if it is no longer empty.
fn left(above: &RemovalLevel, mut done: RemovalLevel) -> Result<Option<RemovalLevel>, Errno> {
    match unlinkat(above.dir.fd()?, &done.name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTEMPTY | Errno::EXIST) if done.tries < TRIES => {
            done.tries += 1;
            done.dir.rewind();
            Ok(Some(done))
        }
        Err(errno) => Err(errno),
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    match openat(dir, name, DIRECTORY, Mode::empty()) {
        // Never for root, which may open everything.
        Err(Errno::ACCESS) => {
            permit(dir, name)?;
            openat(dir, name, DIRECTORY, Mode::empty())
        }
        other => other,
    }
}

/// Grants this user full permissions on its own directory.
fn permit(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let held = Held::at(dir, name)?;
    if held.kind() != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    chmodat(CWD, held.path(), Mode::RWXU, AtFlags::empty())
}

fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn deepen(dir: &Path, levels: usize, each: impl Fn(BorrowedFd<'_>)) {
        let mut at = rustix::fs::open(dir, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..levels {
            each(at.as_fd());
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
    }

    fn descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn a_tree_of_any_depth_is_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&kept, tree.join("a/link")).unwrap();
        deepen(&tree, 30_000, |_| {});
        // A comb: at each level another object remains to be removed.
        fs::create_dir(tree.join("comb")).unwrap();
        deepen(&tree.join("comb"), 500, |at| {
            mkdirat(at, "z", Mode::RWXU).unwrap();
            symlink(&kept, format!("/proc/self/fd/{}/s", std::os::fd::AsRawFd::as_raw_fd(&at)))
                .unwrap();
        });
        // As left by a crash, or by the tree's owner.
        fs::create_dir_all(tree.join(".inlay-removing/0/x")).unwrap();
        fs::write(tree.join(".inlay-removing/1"), "x").unwrap();
        symlink(&kept, tree.join(".inlay-removing/2")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read(kept.join("file")).unwrap(), b"x");
    }

    #[test]
    fn non_directories_are_removed_and_missing_paths_are_no_error() {
        let dir = tempfile::tempdir().unwrap();
        remove_tree(&dir.path().join("nothing")).unwrap();
        remove_tree(&dir.path().join("nothing/below")).unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "x").unwrap();
        symlink(&file, &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(file.exists() && fs::symlink_metadata(&link).is_err());
        remove_tree(&file).unwrap();
        assert!(!file.exists());
        let heap_is_a_file = dir.path().join("odd");
        fs::create_dir(&heap_is_a_file).unwrap();
        fs::write(heap_is_a_file.join(".inlay-removing"), "x").unwrap();
        deepen(&heap_is_a_file, 10, |_| {});
        remove_tree(&heap_is_a_file).unwrap();
        assert!(!heap_is_a_file.exists());
        assert!(remove_tree(Path::new("/")).is_err());
    }

    #[test]
    fn a_removal_goes_on_where_the_last_one_ended() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        deepen(&tree, 5 * DEPTH_MAX, |_| {});
        let mut parts = 0;
        loop {
            let mut steps = 0;
            let removed = remove_tree_while(&tree, &mut || {
                steps += 1;
                steps < 2 * DEPTH_MAX
            });
            match removed.unwrap() {
                Removed::Whole => break,
                Removed::Part => parts += 1,
            }
            assert!(tree.exists() && parts < 100);
        }
        assert!(!tree.exists() && parts > 3, "{parts}");
    }

    #[test]
    fn descriptors_are_bounded_and_given_back() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        deepen(&tree, 3 * DEPTH_MAX, |_| {});
        let before = descriptors();
        remove_tree(&tree).unwrap();
        // Concurrent tests of this process open files too, but fewer than a tree of this depth
        // would need.
        assert!(descriptors() < before + DEPTH_MAX);
    }
}
