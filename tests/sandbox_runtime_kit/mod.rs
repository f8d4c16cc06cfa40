//! Sandboxes on a plain overlay above the small Debian of the fixtures.
#![allow(dead_code, reason = "not every test uses everything")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use inlay_sandbox::{
    ExecOptions, Frame, FrameKind, Layout, LogFrom, LogReader, Monitor, Output as Where, Phase,
    SandboxError, SandboxId, SandboxOptions, SandboxRecord, Secret, Stdin, Terminal, Waited,
    prepare, remove, write_bundle,
};
use inlay_testkit::leftover;
use tempfile::TempDir;

/// A sandbox of a state directory of its own.
pub(crate) struct Box {
    pub(crate) layout: Layout,
    pub(crate) monitor: Monitor,
    pub(crate) state: TempDir,
}

/// What a program printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

impl Output {
    pub(crate) fn read(from: &mut UnixStream) -> Self {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(frame) = Frame::read_from(from).unwrap() {
            match frame.kind {
                FrameKind::Stdout => stdout.extend(frame.bytes),
                FrameKind::Stderr => stderr.extend(frame.bytes),
                FrameKind::Exit => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    let code = frame.exit_code().unwrap();
                    return Self { stdout: text(stdout), stderr: text(stderr), code };
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("the connection ended: {}", String::from_utf8_lossy(&stdout));
    }
}

/// `sh -c SCRIPT`.
pub(crate) fn shell(script: &str) -> ExecOptions {
    ExecOptions {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        user: None,
        workdir: None,
        terminal: Terminal::None,
        size: None,
        stdin: Stdin::Empty,
        output: Where::Stream,
    }
}

/// Runs a program that reads `input`.
pub(crate) fn exec(monitor: &Monitor, options: &ExecOptions, input: &[u8]) -> Output {
    let stream = monitor.exec(options).unwrap();
    let mut socket = stream.socket;
    let mut to = socket.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in input.chunks(10_000) {
                Frame::new(FrameKind::Stdin, piece).write_to(&mut to).ok();
            }
            Frame::new(FrameKind::StdinEof, []).write_to(&mut to).ok();
        });
        Output::read(&mut socket)
    })
}

fn lower() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fixtures/debian-python");
    assert!(path.is_dir(), "scripts/fixtures makes {}", path.display());
    path.canonicalize().unwrap()
}

impl Box {
    /// Everything is there but the monitor.
    pub(crate) fn prepared(
        options: SandboxOptions,
        secrets: &[Secret],
        image: Option<&[u8]>,
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let id = SandboxId::random().unwrap();
        let layout = Layout::of(&state.path().canonicalize().unwrap(), &id);
        let snapshot = format!("img-{}", "0".repeat(64)).parse().unwrap();
        let mut record =
            SandboxRecord::new(id, "test".to_owned(), snapshot, serde_json::Value::Null, options);
        record.write(&layout).unwrap();
        prepare(&layout, &record.options, secrets).unwrap();
        let sandbox = Self { monitor: Monitor::of(&layout), layout, state };
        sandbox.mount_root();
        record.bundle = Some(write_bundle(&sandbox.layout, &record.options, image).unwrap());
        record.phase = Phase::Running;
        record.write(&sandbox.layout).unwrap();
        sandbox
    }

    fn mount_root(&self) {
        let rw = self.layout.rw();
        for dir in ["upper", "work"] {
            fs::create_dir(rw.join(dir)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower().display(),
            self.upper().display(),
            rw.join("work").display()
        );
        let mounted = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(self.layout.rootfs())
            .status()
            .unwrap();
        assert!(mounted.success());
    }

    pub(crate) fn spawn(&self) -> Result<Monitor, SandboxError> {
        let words: Vec<OsString> = vec![
            "monitor".into(),
            "--state".into(),
            self.state.path().canonicalize().unwrap().into(),
            "--sandbox".into(),
            self.layout.id().to_string().into(),
        ];
        Monitor::spawn_with(&self.layout, env!("CARGO_BIN_EXE_inlay").as_ref(), &words)
    }

    /// The same with a certain runtime.
    pub(crate) fn prepared_on(
        runtime: &str,
        options: SandboxOptions,
        secrets: &[Secret],
        image: Option<&[u8]>,
    ) -> Self {
        let runtime = Some(runtime.to_owned());
        Self::prepared(SandboxOptions { runtime, ..options }, secrets, image)
    }

    pub(crate) fn started_on(
        runtime: &str,
        options: SandboxOptions,
        secrets: &[Secret],
        image: Option<&[u8]>,
    ) -> Self {
        let runtime = Some(runtime.to_owned());
        Self::started_from(SandboxOptions { runtime, ..options }, secrets, image)
    }

    pub(crate) fn started(options: SandboxOptions) -> Self {
        Self::started_from(options, &[], None)
    }

    pub(crate) fn started_from(
        options: SandboxOptions,
        secrets: &[Secret],
        image: Option<&[u8]>,
    ) -> Self {
        let sandbox = Self::prepared(options, secrets, image);
        sandbox.spawn().unwrap().start().unwrap();
        sandbox
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.layout.rw().join("upper")
    }

    pub(crate) fn sh(&self, script: &str) -> Output {
        exec(&self.monitor, &shell(script), b"")
    }

    /// Waits until the first process has printed `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        let mut reader = LogReader::open(&self.layout, LogFrom::default()).unwrap();
        let mut all = String::new();
        while !all.contains(text) {
            match reader.wait_entry(Duration::from_mins(1)).unwrap() {
                Waited::Entry(entry) => all.push_str(&String::from_utf8_lossy(&entry.bytes())),
                other => panic!("{other:?} after {all:?}"),
            }
        }
    }

    /// Removes the sandbox, twice, and looks for what is left.
    pub(crate) fn remove(self) {
        remove(&self.layout).unwrap();
        remove(&self.layout).unwrap();
        self.assert_gone();
    }

    /// Nothing is left: directories, mounts, cgroups, processes, loop devices.
    pub(crate) fn assert_gone(&self) {
        let id = self.layout.id().to_string();
        assert!(!self.layout.root().exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&id), "{mounts}");
        for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            let dir = line.split(' ').nth(4).unwrap();
            assert!(!Path::new(dir).join("inlay").join(&id).exists(), "{dir}");
        }
        // A monitor stays until who reads from it has left.
        let left = leftover::remaining_after_wait(|| processes_of(&id));
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(leftover::loop_devices(self.layout.root()), Vec::<PathBuf>::new());
    }
}

/// The words of all processes that name the sandbox `id`, or are in its control groups.
fn processes_of(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let cgroups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        // One that has ended and was not buried yet has no words.
        if !words.is_empty() && (words.contains(id) || cgroups.contains(id)) {
            found.push(words);
        }
    }
    found
}

impl Drop for Box {
    fn drop(&mut self) {
        if self.layout.root().exists()
            && let Err(error) = remove(&self.layout)
        {
            eprintln!("{error}");
        }
    }
}
