//! Runs a scenario's command in a container under an OCI runtime until it is ready.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use super::command::{Program, Running, find, tail, wait_readable};
use super::error::BenchError;
use super::interrupt::Interrupt;
use super::scenario::{Ready, Scenario};

/// Interval between connection attempts to a port.
const PORT_PAUSE: Duration = Duration::from_millis(1);
/// Maximum output kept for matching, in bytes; the rest is read and discarded.
const OUTPUT_MAX: usize = 4 << 20;
const DELETE_LIMIT: Duration = Duration::from_secs(30);
/// Capabilities of root in the container: docker's default set.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// An OCI runtime with a state directory and one bundle.
#[derive(Debug)]
pub(super) struct Runtime {
    program: PathBuf,
    state: PathBuf,
    bundle: PathBuf,
}

impl Runtime {
    /// Finds the runtime with the given name or path, or the first of runc and crun that is
    /// installed.
    pub(super) fn find(wanted: Option<&Path>, work: &Path) -> Result<Self, BenchError> {
        let program = match wanted {
            Some(path) if path.components().count() > 1 => Some(path.to_owned()),
            Some(name) => find(&name.to_string_lossy()),
            None => find("runc").or_else(|| find("crun")),
        };
        let program = program.ok_or_else(|| BenchError::Missing {
            program: wanted.map_or("an OCI runtime".to_owned(), |name| name.display().to_string()),
            why: "to run the command in a container",
            advice: "install the package runc or crun".to_owned(),
        })?;
        let this = Self { program, state: work.join("runtime"), bundle: work.join("bundle") };
        for dir in [&this.state, &this.bundle] {
            fs::create_dir_all(dir).map_err(BenchError::path("make", dir))?;
        }
        Ok(this)
    }

    /// Path of the runtime's executable.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, words: &[&str]) -> Program {
        let state = self.state.to_string_lossy();
        let mut all = vec!["--root", &*state];
        all.extend(words);
        Program::new(&self.program, &all)
    }

    /// Writes the bundle's configuration. Called before the clock starts.
    pub(super) fn describe(&self, scenario: &Scenario, root: &Path) -> Result<(), BenchError> {
        let file = self.bundle.join("config.json");
        fs::write(&file, spec(scenario, root).to_string()).map_err(BenchError::path("write", &file))
    }

    /// Runs the configured container until it is ready, then deletes it. Returns the time of
    /// readiness.
    pub(super) fn run_until_ready(
        &self,
        scenario: &Scenario,
        id: &str,
        interrupt: &Interrupt,
    ) -> Result<Instant, BenchError> {
        if let Ready::Port(port) = scenario.ready
            && connects(port)
        {
            let why =
                format!("port {port} of this host answers before the start: something else has it");
            return Err(BenchError::Request(why));
        }
        let bundle = self.bundle.to_string_lossy().into_owned();
        let program = self.command(&["run", "--bundle", &bundle, id]);
        let (output, theirs) = pipe().map_err(|error| BenchError::Program {
            program: self.program.display().to_string(),
            why: error.to_string(),
        })?;
        let running = program.spawn(|command| {
            if let Ok(copy) = theirs.try_clone() {
                command.stderr(copy);
            }
            command.stdout(theirs);
        })?;
        let mut watch = Watch { running, output, said: Vec::new(), closed: Closed::No };
        let ready = watch.until_ready(scenario, interrupt);
        // Delete the container regardless of the outcome.
        let deleted =
            self.command(&["delete", "--force", id]).limit(DELETE_LIMIT).run(&Interrupt::default());
        drop(watch);
        let ready = ready?;
        deleted?;
        Ok(ready)
    }
}

/// Whether the output has reached end of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    Yes,
    No,
}

struct Watch {
    running: Running,
    output: OwnedFd,
    said: Vec<u8>,
    closed: Closed,
}

impl Watch {
    fn until_ready(
        &mut self,
        scenario: &Scenario,
        interrupt: &Interrupt,
    ) -> Result<Instant, BenchError> {
        let began = Instant::now();
        loop {
            self.read();
            let now = Instant::now();
            match &scenario.ready {
                Ready::Output(pattern)
                    if pattern.is_match(&String::from_utf8_lossy(&self.said)) =>
                {
                    return Ok(now);
                }
                Ready::Port(port) if connects(*port) => return Ok(Instant::now()),
                Ready::Output(_) | Ready::Port(_) | Ready::Exit(_) => {}
            }
            if let Some(status) = self.running.ended()? {
                self.read();
                return match &scenario.ready {
                    Ready::Exit(wanted) if status.code() == Some(*wanted) => Ok(now),
                    Ready::Output(pattern)
                        if pattern.is_match(&String::from_utf8_lossy(&self.said)) =>
                    {
                        Ok(now)
                    }
                    _ => Err(BenchError::Ended { how: how(status), output: tail(&self.said) }),
                };
            }
            interrupt.check()?;
            let left = scenario.limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                let output = tail(&self.said);
                return Err(BenchError::NotReady { limit: scenario.limit, output });
            }
            let pause = if matches!(scenario.ready, Ready::Port(_)) { PORT_PAUSE } else { left };
            self.wait(left.min(pause));
        }
    }

    fn wait(&self, left: Duration) {
        let pid = Pid::from_child(&self.running.child);
        let Ok(ends) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        let mut files = vec![PollFd::new(&ends, PollFlags::IN)];
        let output = self.output.as_fd();
        if self.closed == Closed::No {
            files.push(PollFd::from_borrowed_fd(output, PollFlags::IN));
        }
        wait_readable(&files, left);
    }

    /// Drains the output pipe without blocking.
    fn read(&mut self) {
        let mut piece = vec![0; 1 << 16];
        while self.closed == Closed::No {
            match rustix::io::read(&self.output, &mut piece) {
                Ok(0) => self.closed = Closed::Yes,
                Ok(length) => {
                    if self.said.len() < OUTPUT_MAX {
                        self.said.extend(piece.get(..length).unwrap_or_default());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

fn how(status: std::process::ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with {code}"),
        None => format!("ended: {status}"),
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn connects(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok()
}

/// Returns the runtime configuration: docker's defaults, in the host's network namespace, without
/// resource limits.
fn spec(scenario: &Scenario, root: &Path) -> Value {
    let mount = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let namespaces: Vec<Value> =
        ["pid", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": scenario.command,
            "env": scenario.env,
            "cwd": scenario.workdir,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "root": { "path": root.to_string_lossy(), "readonly": false },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": { "namespaces": namespaces },
    })
}
