//! A host that can lose its power: the state is on a disk in a file, and every process of it is known.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use inlay_testkit::{leftover, scratch};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::failure::Failure;

/// Size of the disk that the state is on; it is sparse.
const DISK_BYTES: u64 = 256 << 20;
/// How long a command may take that surely ends. Generous: the machine may be busy with a build.
const COMMAND_WITHIN: Duration = Duration::from_mins(3);
const TOOLS: [&str; 12] =
    ["sh", "cat", "ls", "echo", "mv", "rm", "sync", "mkdir", "find", "sleep", "cp", "test"];

/// A host with a state, a store beside it, and an image `base`.
pub(crate) struct Host {
    dir: TempDir,
    /// Processes of commands that run now.
    commands: Mutex<BTreeSet<u32>>,
    /// Daemons that this process has started; they are reaped with the host.
    daemons: Mutex<Vec<Child>>,
    next: AtomicU32,
    /// The image of the disk was taken: what ends from now on may be lost.
    pub(crate) power_is_gone: AtomicBool,
}

impl Host {
    pub(crate) fn new() -> io::Result<Self> {
        let host = Self {
            dir: scratch()?,
            commands: Mutex::default(),
            daemons: Mutex::default(),
            next: AtomicU32::new(0),
            power_is_gone: AtomicBool::new(false),
        };
        File::create(host.path("disk"))?.set_len(DISK_BYTES)?;
        tool("mkfs.ext4", ["-q", "-F"].map(OsStr::new), &host.path("disk"))?;
        fs::create_dir(host.path("mnt"))?;
        host.mount_disk()?;
        fs::create_dir_all(host.path("mnt/store"))?;
        host.make_base().map_err(io::Error::other)?;
        Ok(host)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("mnt/state")
    }

    /// A directory of this host with these files.
    pub(crate) fn directory(&self, files: &[(String, u32)]) -> io::Result<PathBuf> {
        let dir = self.path(&format!("files-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir)?;
        for (name, value) in files {
            fs::write(dir.join(name), format!("{value}\n"))?;
        }
        Ok(dir)
    }

    /// Replaces the daemon by another, as an upgrade does.
    pub(crate) fn replace_daemon(&self) -> Result<(), String> {
        let failed = |error: io::Error| format!("the next daemon: {error}");
        let log = File::create(self.path("next-daemon.log")).map_err(failed)?;
        // Named in its words, so that faults find it as they find the others.
        let state = self.state();
        let state = state.to_str().ok_or("the path is no text")?;
        let mut next = self.command(&["daemon", "--state", state, "--takeover", "--in-background"]);
        let mut next = next.stdout(Stdio::null()).stderr(log).spawn().map_err(failed)?;
        let deadline = Instant::now() + COMMAND_WITHIN;
        loop {
            let status = self.json(&["daemon", "status"]);
            if status.is_ok_and(|status| status["server"]["pid"] == next.id()) {
                break;
            }
            if let Some(status) = next.try_wait().map_err(failed)? {
                let log = fs::read_to_string(self.path("next-daemon.log")).unwrap_or_default();
                return Err(format!("the next daemon ended with {status}: {log}"));
            }
            if Instant::now() > deadline {
                return Err("the next daemon does not serve in time".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.daemons.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(next);
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inlay"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_inlay(name)) {
            command.env_remove(name);
        }
        command
            .args(words)
            .env("INLAY_STATE", self.state())
            .env("INLAY_STORE", self.path("mnt/store"))
            .env("INLAY_PREFETCH", "off")
            .env("INLAY_RECORD_PROFILE", "off")
            .env("INLAY_LOG", "info")
            .env("HOME", self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of inlay to its end.
    ///
    /// # Errors
    ///
    /// What it printed, if it failed, did not end in time, or was killed.
    pub(crate) fn inlay(&self, words: &[&str]) -> Result<Vec<u8>, Failure> {
        let failed = |error: io::Error| Failure::Failed(format!("{words:?}: {error}"));
        let mut out = tempfile::tempfile_in(self.dir.path()).map_err(failed)?;
        let mut err = tempfile::tempfile_in(self.dir.path()).map_err(failed)?;
        let mut command = self.command(words);
        command.stdout(out.try_clone().map_err(failed)?).stderr(err.try_clone().map_err(failed)?);
        let mut child = command.spawn().map_err(failed)?;
        self.running().insert(child.id());
        let deadline = Instant::now() + COMMAND_WITHIN;
        let status = loop {
            match child.try_wait().map_err(failed)? {
                Some(status) => break status.to_string(),
                None if Instant::now() > deadline => {
                    child.kill().and_then(|()| child.wait()).map_err(failed)?;
                    break "did not end in time".into();
                }
                None => thread::sleep(Duration::from_millis(3)),
            }
        };
        self.running().remove(&child.id());
        let text = read(&mut out).map_err(failed)?;
        if status == "exit status: 0" {
            return Ok(text);
        }
        let said = read(&mut err).map_err(failed)?;
        let said = String::from_utf8_lossy(&said);
        Err(Failure::Failed(format!("inlay {words:?}: {status}: {}", said.trim())))
    }

    /// The same with `--json`.
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value, Failure> {
        let text = self.inlay(&[words, &["--json"]].concat())?;
        let wrong = |error| Failure::Wrong(format!("inlay {words:?} printed no JSON: {error}"));
        serde_json::from_slice(&text).map_err(wrong)
    }

    /// What a shell in a sandbox prints.
    pub(crate) fn shell(&self, sandbox: &str, script: &str) -> Result<String, Failure> {
        let text = self.inlay(&["exec", sandbox, "--", "sh", "-c", script])?;
        String::from_utf8(text).map_err(|error| Failure::Wrong(format!("{script:?}: {error}")))
    }

    /// Kills this host's processes of one role: `daemon`, `keeper` or `monitor`.
    pub(crate) fn kill(&self, role: &str) {
        let _ = self.kill_if(|line| line.get(1).is_some_and(|word| word == role.as_bytes()));
    }

    /// Kills the monitor of the sandbox with this id, if there is one; tells how many it were.
    pub(crate) fn kill_monitor(&self, id: &str) -> usize {
        let names_it = |word: &Vec<u8>| word.windows(id.len()).any(|part| part == id.as_bytes());
        self.kill_if(|line| {
            line.get(1).is_some_and(|word| word == b"monitor") && line.iter().any(names_it)
        })
    }

    fn kill_if(&self, is_meant: impl Fn(&[Vec<u8>]) -> bool) -> usize {
        let meant = self.processes().into_iter().filter(|(_, line)| is_meant(line));
        meant.filter(|(pid, _)| kill_process(*pid, Signal::KILL).is_ok()).count()
    }

    /// Kills all commands that run now.
    pub(crate) fn kill_commands(&self) {
        for pid in self.running().iter() {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Cuts the power: the disk is as it was at one moment, and every process is gone.
    pub(crate) fn cut_power(&self) -> io::Result<()> {
        self.power_is_gone.store(true, Ordering::SeqCst);
        self.copy_disk()?;
        self.end_everything()?;
        fs::rename(self.path("cut"), self.path("disk"))?;
        self.mount_disk()?;
        self.begin_another_boot()
    }

    /// Lets the records of this boot be those of an earlier one.
    fn begin_another_boot(&self) -> io::Result<()> {
        let path = self.state().join("run/boot.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text?,
        };
        // A record that can't be read is as good as one of this boot.
        if let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(&text) {
            fields.insert("boot".into(), "an earlier boot".into());
            inlay_base::durable::write(&path, Value::from(fields).to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Fills the disk of the state. Removing the file that is returned empties it again.
    pub(crate) fn fill_disk(&self) -> io::Result<PathBuf> {
        let path = self.path("mnt/filler");
        let mut file = File::create(&path)?;
        for size in [16 << 20, 1 << 20, 64 << 10, 4 << 10] {
            let piece = vec![0xa5; size];
            while file.write_all(&piece).is_ok() {}
        }
        Ok(path)
    }

    /// Adds a field of a later version to each record in JSON.
    pub(crate) fn add_fields(&self) {
        for dir in ["sandboxes", "mounts", "attached", "upper", "outbox", "answers"] {
            add_field_below(&self.state().join(dir), 6);
        }
    }

    /// What of this host's sandboxes is left, if anything is. Waits for it to go.
    pub(crate) fn left_of_sandboxes(&self) -> Vec<String> {
        leftover::remaining_after_wait(|| {
            let monitors = self.processes().into_iter().filter_map(|(pid, line)| {
                let is_monitor = line.iter().any(|word| word == b"monitor");
                is_monitor.then(|| format!("monitor {}", pid.as_raw_nonzero()))
            });
            let dirs = fs::read_dir(self.state().join("sandboxes")).into_iter().flatten().flatten();
            monitors.chain(dirs.map(|dir| dir.path().display().to_string())).collect()
        })
    }

    /// The end of the daemon's log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.state().join("log/daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let mut out = lines[lines.len().saturating_sub(60)..].join("\n");
        for (pid, line) in self.processes() {
            let words = line.iter().map(|word| String::from_utf8_lossy(word).into_owned());
            let words = words.collect::<Vec<_>>().join(" ");
            out = format!("{out}\nprocess {}: {words}", pid.as_raw_nonzero());
        }
        out
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.commands.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn make_base(&self) -> Result<(), String> {
        let make = || {
            let bin = self.path("root/bin");
            fs::create_dir_all(&bin)?;
            fs::create_dir_all(self.path("root/etc"))?;
            let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
            let busybox = busybox.into_iter().find(|path| path.exists());
            fs::copy(busybox.ok_or(io::ErrorKind::NotFound)?, bin.join("busybox"))?;
            TOOLS.iter().try_for_each(|tool| symlink("busybox", bin.join(tool)))?;
            fs::write(self.path("root/etc/passwd"), "root:x:0:0::/:/bin/sh\n")
        };
        make().map_err(|error| format!("the root with busybox-static: {error}"))?;
        let source = format!("dir:{}", self.path("root").display());
        self.inlay(&["import", &source, "--name", "base", "--kind", "image"])?;
        Ok(())
    }

    fn mount_disk(&self) -> io::Result<()> {
        let options = ["-o", "loop"].map(OsStr::new);
        let disk = self.path("disk");
        tool("mount", [options[0], options[1], disk.as_os_str()], &self.path("mnt"))
    }

    /// Copies the disk as it is at one moment: nothing was written to it meanwhile.
    fn copy_disk(&self) -> io::Result<()> {
        let disk = self.path("disk");
        let written = || fs::metadata(&disk).map(|now| (now.mtime(), now.mtime_nsec()));
        for _ in 0..50 {
            let before = written()?;
            tool("cp", ["--sparse=always".as_ref(), disk.as_os_str()], &self.path("cut"))?;
            if written()? == before {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::other("the disk was written to all the time"))
    }

    /// Ends all processes and mounts of this host.
    fn end_everything(&self) -> io::Result<()> {
        let cgroups = self.cgroups();
        self.kill_commands();
        // Keepers and monitors first: they would start others or write what happened.
        self.kill("keeper");
        self.kill("monitor");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut left = 0;
            for (pid, _) in self.processes() {
                left += 1;
                let _ = kill_process(pid, Signal::KILL);
            }
            for cgroup in &cgroups {
                for name in ["freezer.state", "cgroup.freeze"] {
                    let thawed = if name == "freezer.state" { "THAWED" } else { "0" };
                    let path = cgroup.join(name);
                    if path.exists() {
                        let _ = fs::write(path, thawed);
                    }
                }
                let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                    left += 1;
                    let _ = kill_process(pid, Signal::KILL);
                }
                let _ = fs::remove_dir(cgroup);
            }
            if left == 0 {
                break;
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("processes survived the power cut"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.detach_mounts()
    }

    /// Where something is mounted below this host's directory.
    pub(crate) fn mounts(&self) -> io::Result<Vec<String>> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let all = table.lines().filter_map(|line| line.split(' ').nth(4));
        let below = all.filter(|path| Path::new(path).starts_with(self.dir.path()));
        Ok(below.map(str::to_owned).collect())
    }

    /// How many objects there are below a directory of the state.
    pub(crate) fn files_below(&self, dir: &str) -> usize {
        let (mut dirs, mut count) = (vec![self.state().join(dir)], 0);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                count += 1;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    dirs.push(entry.path());
                }
            }
        }
        count
    }

    /// How many names of stores the outbox remembers.
    pub(crate) fn seen_names(&self) -> io::Result<usize> {
        let mut count = 0;
        for store in fs::read_dir(self.state().join("outbox"))?.flatten() {
            if let Ok(seen) = fs::read_dir(store.path().join("seen")) {
                count += seen.count();
            }
        }
        Ok(count)
    }

    fn detach_mounts(&self) -> io::Result<()> {
        let mut below = self.mounts()?;
        below.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for path in below {
            // FORCE aborts FUSE connections: a killed daemon may wait for a request of its own.
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = unmount(&*path, flags);
        }
        Ok(())
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let ids = fs::read_dir(self.state().join("sandboxes")).into_iter().flatten().flatten();
        let ids: Vec<_> = ids.map(|entry| entry.file_name()).collect();
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let roots = roots.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        let all = roots.flat_map(|root| ids.iter().map(move |id| root.join("inlay").join(id)));
        all.filter(|dir| dir.is_dir()).collect()
    }

    /// Processes, other than commands of the test, that name this host's disk in their words.
    fn processes(&self) -> Vec<(Pid, Vec<Vec<u8>>)> {
        let own = self.dir.path().as_os_str().as_bytes();
        let mut out = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            if line.windows(own.len()).any(|part| part == own) {
                out.push((pid, line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()));
            }
        }
        out
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut stays = Vec::new();
        if let Err(error) = self.end_everything() {
            stays.push(error.to_string());
        }
        for daemon in &mut *self.daemons.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            let _ = daemon.kill();
            if let Err(error) = daemon.wait() {
                stays.push(format!("daemon {}: {error}", daemon.id()));
            }
        }
        stays.extend(leftover::remaining_after_wait(|| {
            let processes = self.processes().into_iter();
            let processes = processes.map(|(pid, _)| format!("process {}", pid.as_raw_nonzero()));
            let cgroups = self.cgroups().into_iter().map(|dir| dir.display().to_string());
            let mounts = self.mounts().unwrap_or_default();
            let found: Vec<_> = processes.chain(cgroups).chain(mounts).collect();
            if !found.is_empty() {
                // A process that was being started while the others were killed.
                let _ = self.end_everything();
            }
            found
        }));
        let devices = leftover::loop_devices(self.dir.path()).into_iter();
        stays.extend(devices.map(|file| format!("a loop device of {}", file.display())));
        if stays.is_empty() {
            return;
        }
        // A second panic would abort the process, and hide the first.
        assert!(thread::panicking(), "a host stays behind: {stays:?}");
        eprintln!("a host stays behind: {stays:?}");
    }
}

fn is_of_inlay(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("INLAY_")
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    io::Read::read_to_end(file, &mut bytes)?;
    Ok(bytes)
}

fn tool<const N: usize>(program: &str, words: [&OsStr; N], last: &Path) -> io::Result<()> {
    let output = Command::new(program).args(words).arg(last).output()?;
    let said = || format!("{program}: {}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(io::Error::other(said())) }
}

fn add_field_below(dir: &Path, depth: usize) {
    let Some(below) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        // A sandbox's own files are not the daemon's records.
        let skipped = ["upper", "work", "root", "rootfs", "merged", "objects", "logs"];
        if kind.is_dir() && !skipped.iter().any(|name| entry.file_name() == *name) {
            add_field_below(&path, below);
        }
        if kind.is_file() && path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read(&path).unwrap_or_default();
            if let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(&text) {
                fields.insert("of_a_later_version".into(), Value::from(1));
                let new = path.with_extension("later");
                let written = fs::write(&new, Value::from(fields).to_string());
                let _ = written.and_then(|()| fs::rename(&new, &path));
            }
        }
    }
}
