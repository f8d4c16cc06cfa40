//! A host with an image that has a shell, its sandboxes, and what of them must not be left.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use inlay_testkit::cli::{Inlay, Ran};
use inlay_testkit::{leftover, scratch};
use serde_json::Value;
use tempfile::TempDir;

/// What the small root can do.
const TOOLS: [&str; 22] = [
    "sh", "cat", "ls", "touch", "mkdir", "sleep", "mv", "ln", "rm", "mkfifo", "mknod", "mount",
    "stat", "id", "echo", "dd", "find", "chmod", "wc", "true", "cp", "readlink",
];

/// A state with an image `base` that has a shell, and `data`, a directory with one file.
pub(crate) struct Boxes {
    pub(crate) inlay: Inlay,
    pub(crate) dir: TempDir,
}

impl Boxes {
    pub(crate) fn new(inlay: Inlay) -> Self {
        let host = Self { inlay, dir: scratch().unwrap() };
        let bin = host.path("root/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(host.path("root/etc")).unwrap();
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists());
        let busybox = busybox.expect("the package busybox-static is missing");
        fs::copy(busybox, bin.join("busybox")).unwrap();
        for tool in TOOLS {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        fs::write(host.path("root/etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        fs::create_dir(host.path("data")).unwrap();
        fs::write(host.path("data/file"), "x").unwrap();
        fs::write(host.path("secret"), "s").unwrap();
        host.import("root", "base", "image");
        host.import("data", "data", "directory");
        host
    }

    pub(crate) fn import(&self, dir: &str, name: &str, kind: &str) {
        let source = format!("dir:{}", self.path(dir).display());
        self.inlay.succeed(["import", &source, "--name", name, "--kind", kind]).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        self.inlay.run(words).unwrap()
    }

    pub(crate) fn succeed(&self, words: &[&str]) -> Ran {
        self.inlay
            .succeed(words)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.inlay.daemon_log()))
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let ran = self.succeed(&[words, &["--json"]].concat());
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    pub(crate) fn create(&self, name: &str, options: &[&str]) -> Value {
        let words = ["sandbox", "create", "base", "--name", name];
        self.json(&[&words[..], options].concat())
    }

    /// What a shell in the sandbox prints.
    pub(crate) fn sh(&self, sandbox: &str, script: &str) -> String {
        self.succeed(&["exec", sandbox, "--", "sh", "-c", script]).text()
    }

    pub(crate) fn sandboxes(&self) -> Vec<Value> {
        self.json(&["sandbox", "ls"]).as_array().unwrap().clone()
    }

    /// Takes a snapshot and gives its id.
    pub(crate) fn snapshot(&self, place: &str) -> String {
        self.json(&["snapshot", place])["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn cat(&self, what: &str) -> String {
        self.succeed(&["cat", what]).text()
    }

    /// The names in a directory of the state.
    pub(crate) fn listed(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.inlay.state().join(dir)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// All ids that sandboxes of this state ever had, as far as daemons have logged them.
    fn ids(&self) -> BTreeSet<String> {
        let log = self.inlay.daemon_log();
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let found = log.match_indices("sb-").filter_map(|(at, _)| log.get(at..at + 15));
        found.filter(|id| is_hex(&id[3..])).map(str::to_owned).collect()
    }

    /// Removes all sandboxes; then nothing may be left of any.
    pub(crate) fn assert_clean(&self, what: &str) {
        for sandbox in self.sandboxes() {
            self.succeed(&["sandbox", "rm", "--force", sandbox["id"].as_str().unwrap()]);
        }
        self.assert_nothing_left(what);
    }

    /// Nothing of a sandbox is left in the kernel or on disk.
    pub(crate) fn assert_nothing_left(&self, what: &str) {
        self.inlay.wait_until_quiet().unwrap();
        for dir in ["sandboxes", "mounts", "attached", "upper"] {
            let left = self.listed(dir);
            assert!(left.is_empty(), "{what}: {dir}: {left:?}\n{}", self.inlay.daemon_log());
        }
        assert_eq!(self.processes(), Vec::<String>::new(), "{what}");
        let devices = leftover::loop_devices(self.inlay.state());
        assert_eq!(devices, Vec::<PathBuf>::new(), "{what}");
        for id in self.ids() {
            let left: Vec<_> = cgroups(&id).collect();
            assert!(left.is_empty(), "{what}: {left:?}");
        }
    }

    /// The words of all processes that name this state.
    fn processes(&self) -> Vec<String> {
        let state = self.inlay.state().to_str().unwrap();
        leftover::remaining_after_wait(|| {
            let all = fs::read_dir("/proc").unwrap().flatten();
            let words = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
            let words = words.map(|words| String::from_utf8_lossy(&words).replace('\0', " "));
            words.filter(|words| words.contains(state)).collect()
        })
    }

    /// Ends the daemon at once. The next command starts another.
    pub(crate) fn kill_daemon(&self) {
        let (daemon, _) = self.inlay.daemon_pids().unwrap();
        rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    }
}

/// Waits until it is so.
pub(crate) fn wait_for(what: &str, is_so: impl FnMut() -> bool) {
    inlay_testkit::wait::until(what, is_so);
}

/// The cgroups of a sandbox, in whatever hierarchy.
pub(crate) fn cgroups(id: &str) -> impl Iterator<Item = PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let roots = roots.chain([PathBuf::from("/sys/fs/cgroup")]);
    let own: Vec<_> = roots.map(|root| root.join("inlay").join(id)).collect();
    own.into_iter().filter(|dir| dir.exists())
}

impl Drop for Boxes {
    fn drop(&mut self) {
        // A test may have failed: nothing of it may stay.
        let listed = self.inlay.run(["sandbox", "ls", "--json"]);
        let listed = listed.ok().and_then(|ran| serde_json::from_slice::<Value>(&ran.stdout).ok());
        for sandbox in listed.iter().filter_map(Value::as_array).flatten() {
            let id = sandbox["id"].as_str().unwrap_or_default();
            let _ = self.inlay.run(["sandbox", "rm", "--force", id]);
        }
        let _ = self.inlay.run(["daemon", "stop", "--force"]);
    }
}
