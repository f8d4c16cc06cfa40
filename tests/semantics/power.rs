//! Power cuts: the state is on a disk whose contents are copied, as they are without what was not
//! written out, at each step of each operation. Each copy is then used as after the host's next start.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::inject::{Scene, Step};
use inlay_testkit::cli::{Inlay, Ran};
use inlay_testkit::scratch;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::boxes::Boxes;

const PROGRAM: &str = env!("CARGO_BIN_EXE_inlay");
/// How long an operation may take that surely ends.
const SURELY: Duration = Duration::from_mins(2);

/// What must be so after a power cut.
#[derive(Debug, Clone)]
struct Facts {
    sandbox: Presence,
    /// Files in the sandbox as it is captured, and their contents.
    files: Vec<(&'static str, &'static str)>,
    /// Files below the sandbox's directory.
    kept: Vec<&'static str>,
    /// What a writable mount on the host shows of a file that was changed there.
    host: Option<&'static str>,
    /// What is in the snapshot `sealed`.
    sealed: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Must,
    /// An operation that makes or removes it had not returned.
    May,
    MustNot,
}

/// An ext4 filesystem in a file.
struct Disk {
    dir: TempDir,
    images: Vec<(PathBuf, Vec<(String, Facts)>)>,
}

impl Disk {
    fn new() -> Self {
        // In memory, so that a copy takes a moment only.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let disk = Self { dir, images: Vec::new() };
        fs::create_dir(disk.mounted()).unwrap();
        fs::File::create(disk.file()).unwrap().set_len(96 << 20).unwrap();
        let file = disk.file();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&file));
        // Nothing is written out but what is synced, and no heuristics help.
        let options = "loop,commit=300,noauto_da_alloc";
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", options])
            .arg(&file)
            .arg(disk.mounted()));
        disk
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn mounted(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// Copies what is on the disk at this moment. `facts` must be so on it.
    fn cut(&mut self, what: &str, facts: &Facts) {
        let copy = self.dir.path().join(format!("cut-{}", self.images.len()));
        run(Command::new("cp").arg("--sparse=always").arg(self.file()).arg(&copy));
        let named = (what.to_owned(), facts.clone());
        // Often nothing was written since the last time.
        if let Some((last, of_last)) = self.images.last_mut()
            && Command::new("cmp").arg("-s").args([&*last, &copy]).status().unwrap().success()
        {
            of_last.push(named);
            fs::remove_file(copy).unwrap();
        } else {
            self.images.push((copy, vec![named]));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.mounted()).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The steps at which the power is cut.
fn steps() -> impl Iterator<Item = Step> {
    let scenes = [Scene::Create, Scene::LiveMount, Scene::LiveUmount, Scene::Stop, Scene::Remove];
    let others = [Step::UpperPrepared, Step::MountRecorded, Step::MountConfirmed];
    let of_scenes = Step::ALL.iter().copied().filter(move |step| scenes.contains(&step.scene()));
    of_scenes.chain(others).chain([Step::SealedBlobsShipped])
}

/// A host before its power is cut.
struct Before {
    boxes: Boxes,
    disk: Disk,
    armed: TempDir,
}

impl Before {
    fn new() -> Self {
        let (disk, armed) = (Disk::new(), scratch().unwrap());
        let mut faults = Vec::new();
        for step in steps() {
            let file = armed.path().join(step.name());
            fs::write(&file, "").unwrap();
            faults.push(format!("{}=hold@{}", step.name(), file.display()));
        }
        let state = disk.mounted().join("state");
        let inlay = Inlay::with_state(PROGRAM, scratch().unwrap(), state)
            .with_environment([("INLAY_INJECT", faults.join(","))]);
        Self { boxes: Boxes::new(inlay), disk, armed }
    }

    /// Does something that succeeds, and cuts the power at each of its steps.
    fn cut_at_each_step(&mut self, words: &[&str], during: &Facts) -> Ran {
        let boxes = &self.boxes;
        let armed: Vec<(Step, PathBuf)> =
            steps().map(|step| (step, self.armed.path().join(step.name()))).collect();
        // Shipping goes on after its operation.
        let armed = armed.iter().filter(|(step, _)| *step != Step::SealedBlobsShipped);
        let armed: Vec<_> = armed.collect();
        for (_, file) in &armed {
            fs::remove_file(file).unwrap();
        }
        let disk = &mut self.disk;
        let (ran, held) = thread::scope(|scope| {
            let mut count = 0;
            let doing = scope.spawn(|| boxes.succeed(words));
            let until = Instant::now() + SURELY;
            while !doing.is_finished() {
                for (step, file) in &armed {
                    let held = file.with_added_extension("held");
                    if held.exists() {
                        disk.cut(&format!("{words:?} at {}", step.name()), during);
                        fs::remove_file(held).unwrap();
                        count += 1;
                    }
                }
                assert!(Instant::now() < until, "{words:?} does not end");
                thread::sleep(Duration::from_millis(2));
            }
            (doing.join().unwrap(), count)
        });
        assert!(held > 0, "{words:?} was held at no step");
        for (_, file) in &armed {
            fs::write(file, "").unwrap();
        }
        ran
    }

    fn cut(&mut self, what: &str, facts: &Facts) {
        self.disk.cut(what, facts);
    }
}

/// A host that has started again after a power cut.
struct After {
    inlay: Inlay,
    namespace: Child,
    _dir: TempDir,
}

impl After {
    /// `image` is its disk. It has another boot id than before.
    fn new(image: &Path) -> Self {
        let dir = scratch().unwrap();
        let (mounted, boot) = (dir.path().join("mounted"), dir.path().join("boot"));
        fs::create_dir(&mounted).unwrap();
        fs::write(&boot, "11111111-2222-4333-8444-555555555555\n").unwrap();
        let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && \
            mount -t ext4 -o loop \"$2\" \"$3\" && echo ready && exec sleep 600";
        let mut namespace = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([&boot, image, &mounted])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(namespace.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}", image.display());
        // A program that runs the real one in there.
        let program = dir.path().join("inlay");
        let text = format!(
            "#!/bin/sh\nexec nsenter --mount --target {} -- {PROGRAM} \"$@\"\n",
            namespace.id()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let state = mounted.join("state");
        let inlay = Inlay::with_state(program.to_str().unwrap(), scratch().unwrap(), state);
        Self { inlay, namespace, _dir: dir }
    }

    fn succeed(&self, words: &[&str], what: &str) -> Ran {
        let ran = self.inlay.succeed(words);
        ran.unwrap_or_else(|error| panic!("{what}: {error}\n{}", self.log()))
    }

    fn json(&self, words: &[&str], what: &str) -> Value {
        let ran = self.succeed(&[words, &["--json"]].concat(), what);
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    fn log(&self) -> String {
        let log = self.in_state("log/daemon.log");
        fs::read_to_string(log).unwrap_or_default()
    }

    /// A path below the state, as this process sees it.
    fn in_state(&self, path: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.namespace.id());
        let state = self.inlay.state().strip_prefix("/").unwrap();
        Path::new(&root).join(state).join(path)
    }

    /// `mnt` is where the host mounted before: changes are found again by that.
    fn check(&self, what: &str, facts: &Facts, mnt: &str) {
        let listed = self.json(&["sandbox", "ls"], what);
        let listed = listed.as_array().unwrap();
        match facts.sandbox {
            Presence::Must => assert_eq!(listed.len(), 1, "{what}: {}", self.log()),
            Presence::May => assert!(listed.len() <= 1, "{what}: {listed:?}"),
            Presence::MustNot => assert_eq!(listed, &[] as &[Value], "{what}"),
        }
        let status = self.json(&["daemon", "status"], what);
        assert_eq!(status["damaged"], json!([]), "{what}");
        if let Some(shown) = listed.first() {
            let why = shown["damage"].as_str().unwrap_or_default();
            assert_eq!(shown["state"], "stopped", "{what}: {why}");
            assert_eq!(shown["name"], "a", "{what}");
            assert_eq!(shown["options"]["labels"], json!({ "l": "v" }), "{what}");
            for (path, wanted) in &facts.files {
                let (dir, name) = path.rsplit_once('/').unwrap();
                let taken = self.json(&["snapshot", &format!("a:{dir}")], what);
                let file = format!("{}:/{name}", taken["id"].as_str().unwrap());
                assert_eq!(self.succeed(&["cat", &file], what).text(), *wanted, "{what}: {path}");
            }
            let root = format!("sandboxes/{}", shown["id"].as_str().unwrap());
            for kept in &facts.kept {
                assert!(self.in_state(&format!("{root}/{kept}")).exists(), "{what}: {kept}");
            }
        } else {
            let left = fs::read_dir(self.in_state("sandboxes"));
            assert_eq!(left.map_or(0, Iterator::count), 0, "{what}");
        }
        if let Some(wanted) = facts.host {
            self.succeed(&["mount", "--rw", "data", mnt], what);
            let file = format!("/proc/{}/root{mnt}/new", self.namespace.id());
            assert_eq!(fs::read_to_string(file).unwrap(), wanted, "{what}");
            self.succeed(&["umount", mnt], what);
        }
        if let Some(wanted) = facts.sealed {
            self.succeed(&["sync"], what);
            self.succeed(&["verify", "sealed"], what);
            assert_eq!(self.succeed(&["cat", "sealed:/new"], what).text(), wanted, "{what}");
        }
    }
}

impl Drop for After {
    fn drop(&mut self) {
        let _ = self.inlay.run(["daemon", "stop", "--force"]);
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
    }
}

/// All operations, one after another, with a power cut at each step and after each.
fn history(mnt: &str) -> Disk {
    let mut host = Before::new();
    let mut facts = Facts {
        sandbox: Presence::May,
        files: Vec::new(),
        kept: Vec::new(),
        host: None,
        sealed: None,
    };
    let words = ["sandbox", "create", "base", "--name", "a", "--label", "l=v", "-v", "data:/data"];
    host.cut_at_each_step(&words, &facts);
    facts.sandbox = Presence::Must;
    host.cut("a sandbox was created", &facts);
    // Only these files are synced: a sync of everything would hide what inlay has not synced.
    let write = |boxes: &Boxes, path: &str, text: &str| {
        boxes.sh("a", &format!("echo {text} | dd of={path} conv=fsync 2>/dev/null"));
    };
    host.boxes.sh("a", "mkdir /work");
    write(&host.boxes, "/work/new", "n");
    write(&host.boxes, "/data/more", "m");
    facts.files = vec![("/work/new", "n\n"), ("/data/more", "m\n")];
    facts.kept = vec!["mounts/1.json", "mounts/1/snapshot", "mounts/1/upper/more"];
    host.cut("programs have written", &facts);
    facts.files.pop();
    host.cut_at_each_step(&["umount", "a:/data"], &facts);
    host.cut("changes of a mount are kept", &facts);
    host.cut_at_each_step(&["mount", "data", "a:/y"], &facts);
    write(&host.boxes, "/y/z", "z");
    facts.files.push(("/y/z", "z\n"));
    host.cut("something was mounted and written to", &facts);
    host.cut_at_each_step(&["mount", "--rw", "data", mnt], &facts);
    let mut file = fs::File::create(Path::new(mnt).join("new")).unwrap();
    std::io::Write::write_all(&mut file, b"host").unwrap();
    file.sync_all().unwrap();
    drop(file);
    facts.host = Some("host");
    host.cut("a mount of the host was written to", &facts);
    host.boxes.succeed(&["umount", mnt]);
    host.cut("a mount of the host has ended", &facts);
    let shipping = host.armed.path().join(Step::SealedBlobsShipped.name());
    fs::remove_file(&shipping).unwrap();
    host.boxes.succeed(&["snapshot", "a:/work", "--wait", "sealed", "--name", "sealed"]);
    facts.sealed = Some("n\n");
    host.cut("a snapshot was sealed", &facts);
    crate::boxes::wait_for("the way to the store", || shipping.exists());
    host.cut("a sealed snapshot is half in its store", &facts);
    let _ = fs::remove_file(shipping.with_added_extension("held"));
    host.boxes.succeed(&["sync"]);
    host.cut("a sealed snapshot is in its store", &facts);
    host.cut_at_each_step(&["sandbox", "stop", "--time", "0s", "a"], &facts);
    host.cut("the sandbox was stopped", &facts);
    facts.sandbox = Presence::May;
    // What is being removed may have lost anything already, and then is not there.
    (facts.files, facts.kept) = (Vec::new(), Vec::new());
    host.cut_at_each_step(&["sandbox", "rm", "a"], &facts);
    facts.sandbox = Presence::MustNot;
    host.cut("the sandbox was removed", &facts);
    let Before { boxes, disk, .. } = host;
    drop(boxes);
    disk
}

#[cfg_attr(not(debug_assertions), ignore = "release builds have no steps to be held at")]
#[test]
fn a_power_cut_leaves_the_old_or_the_new_state() {
    let mnt = scratch().unwrap();
    let mnt = mnt.path().to_str().unwrap();
    let mut disk = history(mnt);
    let images = std::mem::take(&mut disk.images);
    assert!(images.len() > 10, "{images:?}");
    for (image, all) in &images {
        let after = After::new(image);
        for (what, facts) in all {
            after.check(what, facts, mnt);
        }
    }
}
