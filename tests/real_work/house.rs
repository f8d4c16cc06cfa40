//! One state with the images that all tests of this program share, and its sandboxes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use inlay_testkit::cli::Inlay;
use inlay_testkit::rootfs::{Fixture, find};
use serde_json::Value;

const WALK: &str = include_str!("walk.py");

/// Tests that run at the same time share one; it goes with the last of them.
static SHARED: Mutex<Weak<House>> = Mutex::new(Weak::new());

/// A state with an image `base`, packages for pip and npm as `packages`, and a git repository as
/// `upstream`.
pub(crate) struct House {
    pub(crate) inlay: Inlay,
}

impl House {
    pub(crate) fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(house) = shared.upgrade() {
            return house;
        }
        let house = Arc::new(Self::new());
        *shared = Arc::downgrade(&house);
        house
    }

    fn new() -> Self {
        let house = Self { inlay: Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap() };
        house.import(&find(Fixture::Sandboxes).unwrap(), "base", "image");
        house.import(&find(Fixture::Packages).unwrap(), "packages", "directory");
        house.make_upstream();
        house
    }

    pub(crate) fn import(&self, tree: &Path, name: &str, kind: &str) {
        let source = format!("dir:{}", tree.display());
        self.inlay.succeed(["import", &source, "--name", name, "--kind", kind]).unwrap();
    }

    /// A repository of some hundred files and some commits, bare, made where it belongs: in a sandbox.
    fn make_upstream(&self) {
        let sandbox = self.sandbox("base", "upstream", &[]);
        sandbox.sh(r##"
            git init -q -b main /work && cd /work
            git config user.email a@b.c && git config user.name a
            for commit in 1 2 3; do
                python3 -c 'import os, sys
for n in range(300):
    os.makedirs(f"src/m{n % 20}", exist_ok=True)
    open(f"src/m{n % 20}/f{n}.py", "a").write(f"# {sys.argv[1]} {n}\n" * (n % 40))' $commit
                ln -sf src/m1 "link $commit"
                git add -A && git commit -q -m "commit $commit"
            done
            git clone -q --bare /work /srv/upstream.git
        "##);
        sandbox.snapshot("/srv/upstream.git", &["--name", "upstream"]);
    }

    /// A sandbox of `image` that goes when it is dropped.
    pub(crate) fn sandbox(&self, image: &str, name: &str, options: &[&str]) -> Sandbox<'_> {
        let words = [&["sandbox", "create", image, "--name", name], options].concat();
        self.inlay.succeed(words).unwrap();
        Sandbox { house: self, name: name.to_owned() }
    }

    /// Runs commands of a page in a shell that has `inlay`, up to the first that fails; what they print.
    pub(crate) fn shell(&self, script: &str) -> String {
        let inlay = self.inlay.command();
        let program = PathBuf::from(inlay.get_program());
        let mut shell = Command::new("bash");
        for (name, value) in inlay.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let ran = shell.env("PATH", path).args(["-euc", script]).output().unwrap();
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(
            ran.status.success(),
            "{script}\n{printed}\n{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        printed
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.inlay.run(["daemon", "stop", "--force"]);
    }
}

/// A sandbox of the house.
pub(crate) struct Sandbox<'a> {
    house: &'a House,
    pub(crate) name: String,
}

impl Sandbox<'_> {
    /// What a shell in it prints; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.exec(&["sh", "-euc", script])
    }

    pub(crate) fn exec(&self, command: &[&str]) -> String {
        self.house.inlay.succeed([&["exec", &self.name, "--"], command].concat()).unwrap().text()
    }

    /// Starts a shell in it, which goes on while other things happen.
    pub(crate) fn start(&self, script: &str) -> Running {
        let mut command = self.house.inlay.command();
        command.args(["exec", &self.name, "--", "sh", "-euc", script]);
        Running(command.spawn().unwrap())
    }

    /// Everything below `path`: names, kinds, modes, owners, sizes, times, contents, attributes.
    pub(crate) fn walk(&self, path: &str) -> String {
        self.exec(&["python3", "-c", WALK, path])
    }

    /// Takes a snapshot; what the command says of it.
    pub(crate) fn snapshot(&self, path: &str, options: &[&str]) -> Value {
        let place = format!("{}:{path}", self.name);
        let ran = self.house.inlay.succeed([&["snapshot", &place, "--json"], options].concat());
        serde_json::from_slice(&ran.unwrap().stdout).unwrap()
    }

    /// Mounts a snapshot into it.
    pub(crate) fn mount(&self, snapshot: &str, path: &str) {
        let place = format!("{}:{path}", self.name);
        self.house.inlay.succeed(["mount", snapshot, &place]).unwrap();
    }

    pub(crate) fn umount(&self, path: &str) {
        self.house.inlay.succeed(["umount", &format!("{}:{path}", self.name)]).unwrap();
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        let removed = self.house.inlay.succeed(["sandbox", "rm", "--force", &self.name]);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

/// A program in a sandbox that runs; it ends with its sandbox, or when this is dropped.
pub(crate) struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A differing line says more than two long texts.
pub(crate) fn assert_same(source: &str, mounted: &str, what: &str) {
    assert!(source.lines().count() > 1, "{what}: nothing is there: {source}");
    for (source, mounted) in source.lines().zip(mounted.lines()) {
        assert_eq!(source, mounted, "{what}");
    }
    assert_eq!(source.lines().count(), mounted.lines().count(), "{what}");
}

/// A copy of a tree that shares its files: to be replaced, never written.
pub(crate) fn linked_copy(tree: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-al").args([tree, to]).status().unwrap();
    assert!(copied.success());
}

/// Puts a file in place of what has its name.
pub(crate) fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}
