//! Where a test happens: a state of its own, a source tree, and mounts that end with the test.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use inlay_testkit::cli::{Inlay, Ran};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

/// How long a process may take to end: generous, because nothing waits for it when all is well.
const END_LIMIT: Duration = Duration::from_mins(1);

/// A state, and a directory with `tree` and `mnt`.
pub(crate) struct Place {
    pub(crate) inlay: Inlay,
    pub(crate) dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = inlay_testkit::scratch().unwrap();
        for name in ["tree", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { inlay: Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap(), dir }
    }

    /// A place whose tree holds these files, already imported as `base`.
    pub(crate) fn with(files: &[(&str, &[u8])]) -> Self {
        let place = Self::new();
        for (name, bytes) in files {
            place.write(name, bytes);
        }
        place.import("base");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.path("tree")
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// Writes a file of the source tree.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.tree().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Imports the tree under `name` and gives the id.
    pub(crate) fn import(&self, name: &str) -> String {
        self.import_as(&source("dir", &self.tree()), &["--name", name])
    }

    /// Imports with options and gives the id.
    pub(crate) fn import_as(&self, source: &str, options: &[&str]) -> String {
        let answer = self.json([&["import", source], options].concat());
        answer["id"].as_str().unwrap().to_owned()
    }

    /// What a command answers with `--json`.
    pub(crate) fn json<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Value {
        let ran =
            self.run(words.into_iter().map(|a| a.as_ref().to_owned()).chain(["--json".into()]));
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// Runs a command that must succeed.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Ran {
        self.inlay.succeed(words).unwrap()
    }

    /// What a command that must fail says, with the usual exit code.
    pub(crate) fn refused<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> String {
        let ran = self.inlay.fail(words).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        ran.stderr
    }

    /// A file of a snapshot, as `inlay cat` gives it.
    pub(crate) fn cat(&self, what: &str) -> Vec<u8> {
        self.run(["cat", what]).stdout
    }

    /// Mounts on the place's mount point.
    pub(crate) fn mount(&self, snapshot: &str, options: &[&str]) -> Mounted<'_> {
        let dir = self.mnt();
        let words = ["mount", snapshot].map(OsStr::new).into_iter().chain([dir.as_os_str()]);
        let words = words.chain(options.iter().map(OsStr::new));
        // Made first: should the answer be odd, it is unmounted all the same.
        let mut mounted = Mounted { place: self, dir: dir.clone(), pid: 0 };
        let answer = self.json(words);
        mounted.pid = i32::try_from(answer["server"]["pid"].as_i64().unwrap()).unwrap();
        mounted
    }

    /// The files below a directory of the state.
    pub(crate) fn files_in_state(&self, dir: &str) -> Vec<PathBuf> {
        let mut waiting = vec![self.inlay.state().join(dir)];
        let mut files = Vec::new();
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.exists() {
                files.push(path);
            }
        }
        files
    }

    /// No mount, no record of one, no changes, no temporary file, and soon no process.
    pub(crate) fn assert_nothing_left(&self) {
        self.inlay.wait_until_quiet().unwrap();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for dir in [self.dir.path(), self.inlay.state()] {
            assert!(
                !table.contains(dir.to_str().unwrap()),
                "mounted in {}: {table}",
                dir.display()
            );
        }
        let left = ["mounts", "attached", "upper", "tmp"].map(|dir| self.files_in_state(dir));
        let left: Vec<_> = left.iter().flatten().filter(|path| !path.ends_with(".lock")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A source or target as the command line has it.
pub(crate) fn source(form: &str, path: &Path) -> String {
    format!("{form}:{}", path.display())
}

/// Runs a program of the system that must succeed.
pub(crate) fn system(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Whether a process ends in this time.
pub(crate) fn ends_within(process: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

/// A mount that ends with the test, however the test ends.
pub(crate) struct Mounted<'a> {
    place: &'a Place,
    dir: PathBuf,
    pid: i32,
}

impl Mounted<'_> {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.pid).unwrap()
    }

    /// The daemon that served it when it was mounted, even after it has ended.
    pub(crate) fn process(&self) -> OwnedFd {
        pidfd_open(self.pid(), PidfdFlags::empty()).unwrap()
    }

    /// Waits until the process that serves it has ended, after `end` has made it.
    pub(crate) fn wait_for_end(&self, end: impl FnOnce()) {
        let process = self.process();
        end();
        assert!(ends_within(&process, END_LIMIT), "process {} goes on", self.pid);
    }

    pub(crate) fn unmount(self) {
        self.place.run([OsStr::new("umount"), self.dir.as_os_str()]);
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.pid == 0 {
            return;
        }
        let unmount = |option: &[&str]| {
            let words = ["umount"].iter().chain(option).map(OsStr::new);
            self.place.inlay.run(words.chain([self.dir.as_os_str()]))
        };
        if !unmount(&[]).is_ok_and(|ran| ran.status.success()) {
            let _ = unmount(&["--lazy"]);
        }
    }
}
