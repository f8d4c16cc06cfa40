//! Records on this host's disk: damaged ones, newer ones, and those that a power cut leaves.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use inlay_testkit::cli::Inlay;
use serde_json::{Value, json};

use crate::boxes::{Boxes, wait_for};

/// What can be in the place of a record and is not one.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Empty,
    /// So many parts of eight are there.
    Torn(usize),
    Newer,
    Garbage,
    Nuls,
    Directory,
    Link,
    Fifo,
}

const DAMAGES: [Damage; 9] = [
    Damage::Empty,
    Damage::Torn(1),
    Damage::Torn(4),
    Damage::Torn(7),
    Damage::Newer,
    Damage::Garbage,
    Damage::Nuls,
    Damage::Directory,
    Damage::Link,
];

impl Damage {
    /// Puts it in the place of the record at `path`, whose bytes are `whole`.
    fn put(self, path: &Path, whole: &[u8]) {
        clear(path);
        match self {
            Self::Empty => fs::write(path, "").unwrap(),
            Self::Torn(eighths) => fs::write(path, &whole[..whole.len() * eighths / 8]).unwrap(),
            Self::Newer => fs::write(path, newer(whole)).unwrap(),
            Self::Garbage => fs::write(path, "\u{1b}[2J no record").unwrap(),
            Self::Nuls => fs::write(path, vec![0; whole.len()]).unwrap(),
            Self::Directory => fs::create_dir(path).unwrap(),
            Self::Link => symlink("/dev/zero", path).unwrap(),
            Self::Fifo => {
                let made = Command::new("mkfifo").arg(path).status().unwrap();
                assert!(made.success());
            }
        }
    }
}

/// The same record of a version that is not known; its fields are all that this one knows.
fn newer(whole: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(whole) else {
        return b"version 2\n".to_vec();
    };
    value["version"] = json!(2);
    serde_json::to_vec(&value).unwrap()
}

fn clear(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
}

/// What is at `path`, to be compared.
fn look(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    let bytes = if meta.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    format!("{:?} {bytes:?}", meta.file_type())
}

/// A kind of record, and one of that kind.
struct Kind {
    name: &'static str,
    path: PathBuf,
    whole: Vec<u8>,
    /// The sandbox that is damaged with it, and the process that runs in that.
    sandbox: Option<(String, Option<u64>)>,
    /// What must be there whatever becomes of the record.
    kept: Vec<PathBuf>,
}

/// Sandboxes and mounts of which each has one kind of record damaged, and one that is left alone.
struct Damaged {
    boxes: Boxes,
    kinds: Vec<Kind>,
    /// The daemon that took over last.
    daemon: Option<Child>,
}

impl Damaged {
    fn new() -> Self {
        let boxes = Boxes::new(Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap());
        boxes.create("whole", &["--mount", "data:/data"]);
        boxes.sh("whole", "echo n > /data/new");
        let mut kinds = Vec::new();
        let state = boxes.inlay.state().to_owned();
        let sandbox = |name: &'static str, script: &str| {
            let made = boxes.create(name, &["--mount", "data:/data"]);
            boxes.sh(name, "mkdir /work; echo n > /work/new; echo m > /data/more");
            let id = made["id"].as_str().unwrap().to_owned();
            let root = state.join("sandboxes").join(&id);
            if !script.is_empty() {
                boxes.succeed(&script.split(' ').collect::<Vec<_>>());
            }
            let pid = made["pid"].as_u64().filter(|_| name != "exit");
            let kept = ["rw/upper/work/new", "mounts/1/upper/more"].map(|file| root.join(file));
            (root, Some((id, pid)), kept.to_vec())
        };
        for (name, file, script) in [
            ("record", "sandbox.json", ""),
            ("exit", "exit.json", "sandbox stop --time 0s exit"),
            ("monitor", "monitor.json", ""),
            ("bundle", "bundle/config.json", ""),
            ("mounted", "mounts/1.json", ""),
            ("kept", "mounts/1.json", "umount kept:/data"),
            ("root-upper", "rw/snapshot", ""),
            ("mount-upper", "mounts/1/snapshot", ""),
        ] {
            let (root, sandbox, kept) = sandbox(name, script);
            kinds.push((name, root.join(file), sandbox, kept));
        }
        for (name, at) in [("root-mount", None), ("live-mount", Some("/data"))] {
            let (root, sandbox, kept) = sandbox(name, "");
            let at = at.map_or(root.join("rootfs"), PathBuf::from);
            let owner = sandbox.as_ref().map(|(id, _)| id.as_str());
            kinds.push((name, mount_record(&state, &at, owner), sandbox, kept));
        }
        for name in ["host", "attached"] {
            fs::create_dir(boxes.path(name)).unwrap();
        }
        fs::create_dir(boxes.path("other")).unwrap();
        fs::write(boxes.path("other/file"), "other").unwrap();
        boxes.import("other", "other", "directory");
        boxes.succeed(&["mount", "--rw", "data", boxes.path("host").to_str().unwrap()]);
        let host = mount_record(&state, &boxes.path("host"), None);
        kinds.push(("host", host, None, Vec::new()));
        boxes.succeed(&["mount", "other", boxes.path("attached").to_str().unwrap()]);
        let attached = mount_record(&state, &boxes.path("attached"), None);
        let attached: Value = serde_json::from_slice(&fs::read(attached).unwrap()).unwrap();
        let slot = state.join(format!("attached/{}.json", attached["slots"][0]));
        kinds.push(("attached", slot, None, Vec::new()));
        let kinds = kinds.into_iter().map(|(name, path, sandbox, kept)| {
            let whole =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            Kind { name, path, whole, sandbox, kept }
        });
        Self { kinds: kinds.collect(), boxes, daemon: None }
    }

    fn restart(&mut self) {
        self.boxes.kill_daemon();
        self.wait_for_daemon();
    }

    fn take_over(&mut self) {
        let before = self.boxes.inlay.daemon_pids().unwrap().0;
        let mut next = self.boxes.inlay.command();
        next.args(["daemon", "--takeover", "--idle-exit", "0", "--state"]);
        next.arg(self.boxes.inlay.state()).stdout(Stdio::null()).stderr(Stdio::null());
        self.reap();
        self.daemon = Some(next.spawn().unwrap());
        wait_for("the daemon that takes over", || {
            self.boxes.inlay.daemon_pids().is_ok_and(|(pid, _)| pid != before)
        });
        self.wait_for_daemon();
    }

    fn wait_for_daemon(&self) {
        self.boxes.inlay.wait_for_daemon().unwrap();
    }

    /// Waits for the daemon that took over, if it was replaced or killed.
    fn reap(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            daemon.wait().unwrap();
        }
    }

    /// Nothing was done to what has a damaged record, and all of it is listed so.
    fn assert_left_alone(&self, what: &str) {
        let listed = self.boxes.sandboxes();
        let of = |id: &str| listed.iter().find(|shown| shown["id"] == id).unwrap();
        let status = self.boxes.inlay.daemon_status().unwrap();
        let others = status["damaged"].to_string();
        for kind in &self.kinds {
            let what = format!("{what}: {}", kind.name);
            for file in &kind.kept {
                assert!(file.exists(), "{what}: {} is gone", file.display());
            }
            let path = kind.path.to_str().unwrap();
            let Some((id, pid)) = &kind.sandbox else {
                assert!(others.contains(path), "{what}: {status}");
                continue;
            };
            if let Some(pid) = pid {
                assert!(
                    Path::new(&format!("/proc/{pid}/root/bin")).exists(),
                    "{what}: it was ended"
                );
            }
            let shown = of(id);
            assert_eq!(shown["state"], "damaged", "{what}: {shown}");
            let why = shown["damage"].as_str().unwrap();
            assert!(why.contains(&format!("inlay sandbox rm --force {id}")), "{what}: {why}");
            if kind.name.ends_with("-mount") {
                assert!(why.contains("mount"), "{what}: {why}");
                assert!(others.contains(path), "{what}: {status}");
            } else {
                assert!(why.contains(path), "{what}: {why}");
            }
        }
        // What is whole is as it was.
        assert_eq!(self.boxes.sh("whole", "cat /data/new"), "n\n", "{what}");
        assert_eq!(fs::read(self.boxes.path("host/file")).unwrap(), b"x", "{what}");
    }

    /// Nothing but removing it by its id and by force can be done with a damaged sandbox.
    fn assert_refused(&self, kind: &Kind) {
        let Some((id, _)) = &kind.sandbox else { return };
        let place = format!("{id}:/data");
        for words in [
            &["exec", id, "--", "true"][..],
            &["snapshot", &place],
            &["umount", &place],
            &["mount", "data", &format!("{id}:/more")],
            &["logs", id],
            &["sandbox", "stop", id],
            &["sandbox", "rm", id],
        ] {
            let ran = self.boxes.inlay.fail(words).unwrap();
            assert!(ran.stderr.contains("is damaged"), "{}: {ran:?}", kind.name);
            assert!(ran.stderr.contains("--takeover"), "{}: {ran:?}", kind.name);
        }
        let shown = self.boxes.json(&["sandbox", "inspect", id]);
        assert_eq!(shown["state"], "damaged", "{shown}");
    }

    /// What a newer version has added is no damage, and stays.
    fn add_unknown_fields(&self) {
        for kind in &self.kinds {
            let mut text = kind.whole.clone();
            if let Ok(mut value) = serde_json::from_slice::<Value>(&text) {
                value["later"] = json!({ "x": [1] });
                if kind.name == "record" {
                    value["options"]["later"] = json!(true);
                    value["options"]["limits"]["later"] = json!(1);
                }
                text = serde_json::to_vec(&value).unwrap();
            } else {
                text.extend(b"later\n");
            }
            fs::write(&kind.path, text).unwrap();
        }
    }

    /// Leaves what a daemon leaves that dies when it has announced a mount and not made it.
    fn leave_incomplete_mount(&self) {
        let shown = self.boxes.json(&["sandbox", "inspect", "whole"]);
        let id = shown["id"].as_str().unwrap();
        let mounts = self.boxes.inlay.state().join("sandboxes").join(id).join("mounts");
        let mut record: Value =
            serde_json::from_slice(&fs::read(mounts.join("1.json")).unwrap()).unwrap();
        record["number"] = json!(9);
        record["path"] = json!("/incomplete");
        record["place"] = json!("making");
        fs::write(mounts.join("9.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    }

    /// How many sandboxes run, and how many are stopped.
    fn states(&self) -> (usize, usize) {
        let listed = self.boxes.sandboxes();
        let count = |state| listed.iter().filter(|shown| shown["state"] == state).count();
        (count("running"), count("stopped"))
    }

    fn restore(&self) {
        for kind in &self.kinds {
            clear(&kind.path);
            fs::write(&kind.path, &kind.whole).unwrap();
        }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        // After a failure, damaged sandboxes are to be found by their names again.
        if std::thread::panicking() {
            self.restore();
        }
        let _ = self.boxes.inlay.run(["daemon", "stop", "--force"]);
        self.reap();
    }
}

/// The record of the mount at `mountpoint` in the sandbox `owner`, or on the host.
fn mount_record(state: &Path, mountpoint: &Path, owner: Option<&str>) -> PathBuf {
    let records = fs::read_dir(state.join("mounts")).unwrap();
    let mut paths = records.map(|entry| entry.unwrap().path());
    let found = paths.find(|path| {
        let Ok(record) = serde_json::from_slice::<Value>(&fs::read(path).unwrap()) else {
            return false;
        };
        record["mountpoint"] == mountpoint.to_str().unwrap() && record["owner"].as_str() == owner
    });
    found.unwrap_or_else(|| panic!("no record of {}", mountpoint.display()))
}

#[test]
fn a_record_that_cannot_be_understood_is_kept_and_reported() {
    let mut host = Damaged::new();
    host.add_unknown_fields();
    host.restart();
    host.take_over();
    assert_eq!(host.states(), (10, 1), "{:?}", host.boxes.sandboxes());
    assert_eq!(host.boxes.inlay.daemon_status().unwrap()["damaged"], json!([]));
    host.restore();
    // Each kind of record has each kind of damage once, by turns.
    for round in 0..DAMAGES.len() {
        let damage_of = |at: usize| {
            // A FIFO must not block whoever opens it.
            let damage = DAMAGES[(round + at) % DAMAGES.len()];
            if matches!(damage, Damage::Link) && at.is_multiple_of(2) {
                Damage::Fifo
            } else {
                damage
            }
        };
        let mut looks = Vec::new();
        for (at, kind) in host.kinds.iter().enumerate() {
            damage_of(at).put(&kind.path, &kind.whole);
            looks.push(look(&kind.path));
        }
        for (what, next) in [
            ("a restart", Damaged::restart as fn(&mut Damaged)),
            ("a takeover", Damaged::take_over),
        ] {
            host.leave_incomplete_mount();
            next(&mut host);
            let what = format!("round {round}, {what}");
            host.assert_left_alone(&what);
            if round == 0 && what.ends_with("restart") {
                host.kinds.iter().for_each(|kind| host.assert_refused(kind));
            }
            for (kind, before) in host.kinds.iter().zip(&looks) {
                assert_eq!(&look(&kind.path), before, "{what}: {}", kind.name);
            }
        }
        if round + 1 < DAMAGES.len() {
            host.restore();
        }
    }
    // By its id and by force, a damaged sandbox goes like any other.
    let (id, _) = host.kinds[0].sandbox.clone().unwrap();
    host.boxes.succeed(&["sandbox", "rm", "--force", &id]);
    assert!(!host.boxes.inlay.state().join("sandboxes").join(&id).exists());
    host.kinds.remove(0);
    // What is restored is as it was.
    host.restore();
    host.restart();
    assert_eq!(host.states(), (9, 1), "{:?}", host.boxes.sandboxes());
    assert_eq!(host.boxes.inlay.daemon_status().unwrap()["damaged"], json!([]));
    for (name, files) in [("mounted", "/work/new /data/more"), ("kept", "/work/new")] {
        assert_eq!(host.boxes.sh(name, &format!("cat {files}")).lines().next(), Some("n"));
    }
    host.boxes.succeed(&["mount", "data", "kept:/data"]);
    assert_eq!(host.boxes.sh("kept", "cat /data/more"), "m\n");
    let taken = host.boxes.snapshot("exit:/work");
    assert_eq!(host.boxes.cat(&format!("{taken}:/new")), "n\n");
    wait_for("what is attached", || fs::read(host.boxes.path("attached/file")).is_ok());
    for dir in ["host", "attached"] {
        host.boxes.succeed(&["umount", "--discard", host.boxes.path(dir).to_str().unwrap()]);
    }
    host.boxes.assert_clean("all");
}
