//! Resolves paths below a potentially hostile root without ever leaving it, despite concurrent
//! renames.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Maximum retries of a path with `..`.
const TRIES: u32 = 10_000;

/// Opens `path` below `root`. Absolute symbolic links and `..` are confined to the root.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename or mount anywhere on this host raced with the resolution of `..`.
            Err(Errno::AGAIN) => std::thread::yield_now(),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn renaming_elsewhere_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        symlink("../../../file", root.join("etc/link")).unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::create_dir(&one).unwrap();
        let done = AtomicBool::new(false);
        let open_root = rustix::fs::open(&root, OFlags::PATH, Mode::empty()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &two).unwrap();
                    fs::rename(&two, &one).unwrap();
                }
            });
            let opened: Vec<_> = (0..5000)
                .map(|_| open(&open_root, Path::new("etc/link"), OFlags::RDONLY))
                .filter_map(Result::err)
                .collect();
            done.store(true, Ordering::Relaxed);
            assert_eq!(opened, []);
        });
    }
}
