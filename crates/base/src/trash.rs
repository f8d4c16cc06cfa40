//! Removes large directories in the background, so that callers do not wait.
//!
//! A sandbox may leave millions of objects, and on some filesystems removing each takes
//! milliseconds. So a directory is first renamed into `STATE/trash`. The caller removes as much as
//! it can within a few seconds; a thread of this daemon, or of the next one, removes the rest.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::remove::{Removed, remove_tree, remove_tree_while};
use parking_lot::{Condvar, Mutex};

const TRASH: &str = "trash";
/// Prefix of entries left to the daemon's thread.
const LATER: &str = "later-";
/// Maximum time a caller spends on a removal.
const WITHIN: Duration = Duration::from_secs(5);

/// Wakes the daemon's thread when there is more to remove.
struct Bell {
    rung: Mutex<u64>,
    wake: Condvar,
}

static BELL: Bell = Bell { rung: Mutex::new(0), wake: Condvar::new() };

impl Bell {
    fn ring(&self) {
        *self.rung.lock() += 1;
        self.wake.notify_all();
    }
}

/// Moves the directory `dir` out of the state directory `state` and removes it with its contents.
/// No-op if it does not exist. Nothing may be mounted below it.
pub fn discard(state: &Path, dir: &Path) -> io::Result<()> {
    discard_within(state, dir, WITHIN)
}

fn discard_within(state: &Path, dir: &Path, within: Duration) -> io::Result<()> {
    let trash = state.join(TRASH);
    let Some(place) = take_out(&trash, dir)? else { return Ok(()) };
    let deadline = Instant::now() + within;
    match remove_tree_while(&place, &mut || Instant::now() < deadline)? {
        Removed::Whole => {
            // Fails if other entries remain, and then the trash stays.
            fs::remove_dir(&trash).ok();
        }
        Removed::Part => {
            let later = format!("{LATER}{:016x}", fastrand::u64(..));
            fs::rename(&place, trash.join(later))?;
            tracing::info!(
                path = %dir.display(),
                "removing a large directory in the background"
            );
            BELL.ring();
        }
    }
    Ok(())
}

/// Renames `dir` into the trash. `None` if it does not exist, or was removed directly because it is
/// on another filesystem.
fn take_out(trash: &Path, dir: &Path) -> io::Result<Option<PathBuf>> {
    loop {
        match DirBuilder::new().mode(0o700).create(trash) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let place = trash.join(format!("now-{:016x}", fastrand::u64(..)));
        match fs::rename(dir, &place) {
            Ok(()) => return Ok(Some(place)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound if fs::symlink_metadata(dir).is_err() => {
                    fs::remove_dir(trash).ok();
                    return Ok(None);
                }
                // A concurrent removal deleted the empty trash, or the name is taken.
                io::ErrorKind::NotFound
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::DirectoryNotEmpty => {}
                io::ErrorKind::CrossesDevices => {
                    fs::remove_dir(trash).ok();
                    return remove_tree(dir).map(|()| None);
                }
                _ => return Err(error),
            },
        }
    }
}

/// Background thread that empties the trash of one state directory until it is dropped.
#[derive(Debug)]
pub struct Emptier {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Emptier {
    /// Starts with the entries left in `state` by earlier daemons.
    pub fn start(state: &Path) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (trash, stopped) = (state.join(TRASH), Arc::clone(&stop));
        // List before any request runs: later the trash also holds entries that this daemon is
        // removing.
        let old = listed(&trash)?;
        let thread = thread::Builder::new()
            .name("inlay-trash".to_owned())
            .spawn(move || work(&trash, old, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Emptier {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        BELL.ring();
        if let Some(thread) = self.thread.take() {
            // The thread checks the flag before each object. A panic in it has been reported.
            thread.join().ok();
        }
    }
}

fn work(trash: &Path, old: Vec<PathBuf>, stop: &AtomicBool) {
    let mut wanted = old;
    loop {
        // Read before listing, so that a concurrent `discard` is not missed.
        let before = *BELL.rung.lock();
        match listed(trash) {
            Ok(listed) => wanted.extend(listed.into_iter().filter(|path| is_later(path))),
            Err(error) => {
                tracing::warn!(path = %trash.display(), %error, "can't list the trash; it stays");
            }
        }
        empty(trash, std::mem::take(&mut wanted), stop);
        let mut rung = BELL.rung.lock();
        while *rung == before && !stop.load(Ordering::Relaxed) {
            BELL.wake.wait(&mut rung);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn is_later(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(LATER.as_bytes()))
}

fn listed(trash: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(trash) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// Removes the `wanted` entries until `stop` is set. Continues after one that fails.
fn empty(trash: &Path, wanted: Vec<PathBuf>, stop: &AtomicBool) {
    for path in wanted {
        match remove_tree_while(&path, &mut || !stop.load(Ordering::Relaxed)) {
            Ok(Removed::Whole) => {}
            Ok(Removed::Part) => return,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "can't remove a directory from the trash");
            }
        }
    }
    // Fails if other entries remain, and then the trash stays.
    fs::remove_dir(trash).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(dir: &Path) {
        for place in 0..20 {
            fs::create_dir_all(dir.join(format!("{place}/below"))).unwrap();
        }
    }

    #[test]
    fn discarded_directories_are_gone_and_leave_no_trash() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("dir");
        discard(state.path(), &dir).unwrap();
        filled(&dir);
        discard(state.path(), &dir).unwrap();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn slow_removals_are_moved_to_the_trash_at_once_and_finished_by_a_daemon() {
        let state = tempfile::tempdir().unwrap();
        let (one, two) = (state.path().join("one"), state.path().join("two"));
        filled(&one);
        filled(&two);
        discard_within(state.path(), &one, Duration::ZERO).unwrap();
        assert!(!one.exists());
        let trash = state.path().join(TRASH);
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 1);
        // Left by a removal that crashed.
        fs::create_dir(trash.join("now-1")).unwrap();
        let emptied = || {
            let deadline = Instant::now() + Duration::from_mins(1);
            while trash.exists() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
            !trash.exists()
        };
        let emptier = Emptier::start(state.path()).unwrap();
        assert!(emptied());
        discard_within(state.path(), &two, Duration::ZERO).unwrap();
        assert!(emptied() && !two.exists());
        drop(emptier);
    }

    #[test]
    fn an_unremovable_entry_does_not_delay_the_others() {
        let state = tempfile::tempdir().unwrap();
        let trash = state.path().join(TRASH);
        let names: Vec<_> = (0..8).map(|number| trash.join(format!("{LATER}{number}"))).collect();
        for name in &names {
            fs::create_dir_all(name.join("below")).unwrap();
        }
        let held = names[3].join("below");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &held, "tmpfs", flags, None).unwrap();
        let emptier = Emptier::start(state.path()).unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        let left = || names.iter().filter(|name| name.exists()).count();
        while left() > 1 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        drop(emptier);
        let (left, kept) = (left(), names[3].exists());
        rustix::mount::unmount(&held, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(left == 1 && kept, "{left}");
    }
}
