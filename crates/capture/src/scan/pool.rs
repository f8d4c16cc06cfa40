//! The thread pool of a scan: each thread takes a directory, scans it, and queues its
//! subdirectories.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::dir::{DirReader, Found};
use super::{DirIdx, DirScan, Scan, UpperDir};
use crate::error::CaptureError;
use crate::exclude::Exclude;
use crate::options::Cancel;
use crate::paths::{DEPTH_MAX, PathId, Paths};
use crate::previous_scan::Seen;
use crate::stat::Moment;

/// How to treat changes during a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// Tolerate them: the subject is running, and a later scan finds what this one misses.
    Loose,
    /// Fail: the subject is frozen.
    Strict,
}

/// The parameters common to all scans of a capture.
pub(crate) struct Scanner<'a> {
    pub(crate) exclude: &'a Exclude,
    pub(crate) seen: &'a Seen,
    pub(crate) cancel: &'a Cancel,
    /// The maximum number of names in all scans of a round together.
    pub(crate) entries_max: u64,
    pub(crate) strictness: Strictness,
    /// The number of names found so far.
    pub(crate) entries: AtomicU64,
}

/// A queued directory.
pub(super) struct Job {
    pub(super) dir: DirIdx,
    pub(super) path: PathId,
    /// Its number in the previous scan.
    pub(super) before: DirIdx,
    /// Its inode number according to its parent.
    pub(super) inode: u64,
}

struct Queue {
    jobs: Vec<Job>,
    paths: Paths,
    dirs: u32,
    busy: usize,
    failed: Option<CaptureError>,
}

/// The state shared by the threads of one scan.
pub(super) struct Shared<'a> {
    pub(super) scanner: &'a Scanner<'a>,
    pub(super) root: &'a UpperDir,
    /// The path of the scanned directory, relative to the captured one.
    pub(super) at: &'a Path,
    pub(super) before: Option<&'a Scan>,
    queue: Mutex<Queue>,
    wake: Condvar,
    stop: AtomicBool,
}

impl Scanner<'_> {
    /// Scans all of `root`, which is at `at` in the captured directory. `before` is an earlier scan
    /// of the same directory.
    pub(crate) fn scan(
        &self,
        root: &UpperDir,
        at: &Path,
        before: Option<&Scan>,
    ) -> Result<Scan, CaptureError> {
        let begun = Moment::now();
        let inode = super::Stat::of(root.fd(), c"")
            .map_err(|e| super::read_error(at.to_owned(), "stat", e))?;
        let shared = Shared {
            scanner: self,
            root,
            at,
            before,
            queue: Mutex::new(Queue {
                jobs: vec![Job {
                    dir: DirIdx::ROOT,
                    path: Paths::ROOT,
                    before: DirIdx::ROOT,
                    inode: inode.id.inode,
                }],
                paths: Paths::new(),
                dirs: 1,
                busy: 0,
                failed: None,
            }),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        };
        let threads = thread::available_parallelism().map_or(2, usize::from).clamp(1, 4);
        let found = thread::scope(|scope| {
            let workers: Vec<_> = (1..threads)
                .filter_map(|_| {
                    let shared = &shared;
                    thread::Builder::new()
                        .name("inlay-scan".to_owned())
                        .spawn_scoped(scope, move || shared.work())
                        .ok()
                })
                .collect();
            let mut found = shared.work();
            for worker in workers {
                match worker.join() {
                    Ok(more) => found.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            found
        });
        let Queue { paths, dirs: count, failed, .. } = shared.queue.into_inner();
        if let Some(error) = failed {
            return Err(error);
        }
        let mut dirs = Vec::new();
        dirs.resize_with(count as usize, || None);
        for (dir, scan) in found {
            if let Some(place) = dirs.get_mut(dir.0 as usize) {
                *place = Some(scan);
            }
        }
        Ok(Scan { dirs, paths, begun })
    }
}

impl Shared<'_> {
    /// Reports whether the scan is being aborted.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Returns the path of `name` in `dir`, relative to the captured directory.
    pub(super) fn path(&self, dir: PathId, name: &[u8]) -> PathBuf {
        self.at.join(self.queue.lock().paths.path(dir, name))
    }

    pub(super) fn compose(&self, dir: PathId, out: &mut Vec<u8>) {
        self.queue.lock().paths.compose(dir, out);
    }

    fn work(&self) -> Vec<(DirIdx, DirScan)> {
        let mut reader = DirReader::new(self);
        let mut found = Vec::new();
        while let Some(job) = self.next() {
            let _turn = Turn(self);
            match reader.read(&job) {
                Ok(Some(mut result)) => match self.leave(&job, &mut result) {
                    Ok(()) => found.push((job.dir, result.scan)),
                    Err(error) => self.fail(error),
                },
                Ok(None) => {}
                Err(error) => self.fail(error),
            }
        }
        found
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if self.stopped() {
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                queue.busy += 1;
                return Some(job);
            }
            if queue.busy == 0 {
                return None;
            }
            self.wake.wait(&mut queue);
        }
    }

    fn fail(&self, error: CaptureError) {
        self.queue.lock().failed.get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
        // A thread about to wait may miss this, but not the one of the caller's `Turn`, whose drop
        // takes the lock first.
        self.wake.notify_all();
    }

    /// Queues the subdirectories of a directory; the first by name is popped first.
    fn leave(&self, job: &Job, found: &mut Found) -> Result<(), CaptureError> {
        let scanner = self.scanner;
        if scanner.cancel.is_cancelled() {
            return Err(CaptureError::Cancelled);
        }
        let new = found.scan.entries.len() as u64;
        let limit = scanner.entries_max;
        if scanner.entries.fetch_add(new, Ordering::Relaxed) + new > limit {
            return Err(entries_limit(self.at, limit));
        }
        if found.dirs.is_empty() {
            return Ok(());
        }
        let mut queue = self.queue.lock();
        for (place, before) in found.dirs.drain(..).rev() {
            let Some(entry) = found.scan.entries.get(place) else { continue };
            let Some(path) = queue.paths.push(job.path, found.scan.name(entry)) else {
                let what = self.at.join(queue.paths.path(job.path, b"")).display().to_string();
                let (of, limit) = ("levels of directories", DEPTH_MAX.into());
                return Err(CaptureError::Limit { what, of, limit });
            };
            let inode = entry.stat.id.inode;
            let dir = DirIdx(queue.dirs);
            queue.dirs += 1;
            queue.jobs.push(Job { dir, path, before, inode });
            if let Some(entry) = found.scan.entries.get_mut(place) {
                entry.dir = dir;
            }
        }
        drop(queue);
        self.wake.notify_all();
        Ok(())
    }

    /// Handles a change: an error only in strict mode.
    pub(super) fn changed(
        &self,
        dir: PathId,
        name: &[u8],
        what: &'static str,
    ) -> Result<(), CaptureError> {
        match self.scanner.strictness {
            Strictness::Loose => Ok(()),
            Strictness::Strict => Err(CaptureError::Changed { path: self.path(dir, name), what }),
        }
    }

    /// Distinguishes a change, which may be tolerated, from a failure.
    pub(super) fn failed(
        &self,
        dir: PathId,
        name: &[u8],
        doing: &'static str,
        error: Errno,
    ) -> Result<(), CaptureError> {
        match error {
            Errno::NOENT => self.changed(dir, name, "was removed"),
            Errno::LOOP | Errno::NOTDIR | Errno::STALE => {
                self.changed(dir, name, "was replaced by something else")
            }
            error => Err(super::read_error(self.path(dir, name), doing, error)),
        }
    }
}

/// The error for too many names.
pub(crate) fn entries_limit(at: &Path, limit: u64) -> CaptureError {
    let what = if at.as_os_str().is_empty() {
        "what is captured".to_owned()
    } else {
        at.display().to_string()
    };
    CaptureError::Limit { what, of: "entries", limit }
}

/// A directory in progress. Its drop marks it as done even on a panic, so that no other thread
/// waits for it forever.
struct Turn<'a>(&'a Shared<'a>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().busy -= 1;
        if thread::panicking() {
            self.0.stop.store(true, Ordering::Relaxed);
        }
        self.0.wake.notify_all();
    }
}
