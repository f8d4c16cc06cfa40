//! Drives an OCI runtime: runc, crun, or any other with a compatible command line.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use inlay_base::programs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::cgroup::{Version, hierarchies};
use super::error::SandboxError;
use super::files::Config;
use super::layout::Layout;
use super::spec::RUNTIME;

/// The runtimes to look for if none is named, in order of preference.
pub const KNOWN: [&str; 2] = ["runc", "crun"];
/// Timeout of a runtime invocation. Create and exec take tenths of a second; a busy host may be a
/// hundred times slower.
pub(super) const CALL_WITHIN: Duration = Duration::from_mins(1);
/// The maximum size of a log or output that is read, in bytes.
const LOG_LEN_MAX: u64 = 1 << 20;

/// A shell script that unmounts the mount point in its first argument and executes the rest.
const WITHOUT: &str = "umount -- \"$1\" && shift && exec \"$@\"";

/// The runtime of one sandbox.
#[derive(Debug, Clone)]
pub(super) struct Runtime {
    program: PathBuf,
    layout: Layout,
    /// The mount point of a cgroup hierarchy to hide from the runtime.
    hidden: Option<PathBuf>,
}

/// A prepared invocation.
pub(super) struct Call {
    /// Its purpose, for error messages.
    what: &'static str,
    /// The program with its arguments; the caller sets its output streams.
    pub(super) command: Command,
    log: NamedTempFile,
}

/// The container's state according to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerState {
    /// No such container.
    Absent,
    /// Its first process exists and has this pid.
    Alive(u32),
    /// Its first process has exited.
    Stopped,
}

impl Runtime {
    /// Returns the path of the `wanted` runtime, or of the first one installed.
    pub(super) fn choose(wanted: Option<&str>) -> Result<PathBuf, SandboxError> {
        match wanted {
            Some(path) if path.contains('/') => {
                let path =
                    std::path::absolute(path).map_err(SandboxError::io("find", path.as_ref()))?;
                if path.is_file() {
                    return Ok(path);
                }
                Err(SandboxError::RuntimeMissing(path.display().to_string()))
            }
            Some(name) => {
                programs::find(name).ok_or_else(|| SandboxError::RuntimeMissing(name.to_owned()))
            }
            None => KNOWN
                .iter()
                .find_map(|name| programs::find(name))
                .ok_or_else(|| SandboxError::RuntimeMissing(KNOWN.join(" or "))),
        }
    }

    /// Returns the runtime that a sandbox was created with; `None` if there is no bundle yet.
    pub(super) fn of(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        let Some(config) = Config::read(layout)? else { return Ok(None) };
        let program = config.get("annotations").and_then(|all| all.get(RUNTIME));
        let program = program
            .and_then(Value::as_str)
            .ok_or_else(|| SandboxError::damaged(layout.config(), "it names no runtime"))?;
        let program = PathBuf::from(program);
        let hidden = if is_crun(&program) { unified_beside_v1()? } else { None };
        Ok(Some(Self { program, layout: layout.clone(), hidden }))
    }

    /// Returns the name of its executable, for messages.
    pub(super) fn name(&self) -> String {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Prepares an invocation: `words` follow the options common to all invocations.
    pub(super) fn call(&self, what: &'static str, words: &[&OsStr]) -> Result<Call, SandboxError> {
        let dir = self.layout.root();
        let log = tempfile::Builder::new()
            .prefix("runtime-log-")
            .tempfile_in(dir)
            .map_err(SandboxError::io("make a file in", dir))?;
        let mut command = match &self.hidden {
            None => Command::new(&self.program),
            Some(hidden) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "--", "sh", "-c", WITHOUT, "sh"]);
                command.arg(hidden).arg(&self.program);
                command
            }
        };
        command.arg("--root").arg(self.layout.runtime_root());
        command.arg("--log").arg(log.path()).args(["--log-format", "json"]).args(words);
        // Its own process group, so that killing it also kills its helper processes.
        command.process_group(0).current_dir("/").stdin(Stdio::null());
        Ok(Call { what, command, log })
    }

    fn id(&self) -> &OsStr {
        self.layout.id().as_str().as_ref()
    }

    /// Creates the container; its first process waits for the start.
    pub(super) fn create(&self, console: Option<&Path>) -> Result<Call, SandboxError> {
        let (bundle, pid_file) = (self.layout.bundle(), self.layout.pid_file());
        let mut words: Vec<&OsStr> = vec!["create".as_ref(), "--bundle".as_ref(), bundle.as_ref()];
        words.extend([OsStr::new("--pid-file"), pid_file.as_ref()]);
        if let Some(console) = console {
            words.extend([OsStr::new("--console-socket"), console.as_ref()]);
        }
        words.push(self.id());
        self.call("create the container", &words)
    }

    /// Starts the first process.
    pub(super) fn start(&self) -> Result<Call, SandboxError> {
        self.call("start the container", &["start".as_ref(), self.id()])
    }

    /// Runs a process beside the first.
    pub(super) fn exec(
        &self,
        process: &Path,
        pid_file: &Path,
        console: Option<&Path>,
    ) -> Result<Call, SandboxError> {
        let mut words: Vec<&OsStr> = vec!["exec".as_ref(), "--detach".as_ref()];
        words.extend([OsStr::new("--process"), process.as_ref()]);
        words.extend([OsStr::new("--pid-file"), pid_file.as_ref()]);
        if let Some(console) = console {
            words.extend([OsStr::new("--console-socket"), console.as_ref()]);
        }
        words.push(self.id());
        self.call("run it", &words)
    }

    /// Sends a signal to the first process.
    pub(super) fn kill(&self, signal: i32) -> Result<Call, SandboxError> {
        let number = OsString::from(signal.to_string());
        self.call("send a signal", &["kill".as_ref(), self.id(), &number])
    }

    /// Deletes the container and kills its processes.
    pub(super) fn delete(&self) -> Result<Call, SandboxError> {
        self.call("delete the container", &["delete".as_ref(), "--force".as_ref(), self.id()])
    }

    /// Queries the container's state.
    pub(super) fn state(&self) -> Result<ContainerState, SandboxError> {
        if !self.layout.runtime_root().exists() {
            return Ok(ContainerState::Absent);
        }
        let call = self.call("tell the container's state", &["state".as_ref(), self.id()])?;
        let out = match self.run(call, CALL_WITHIN) {
            Ok(out) => out,
            Err(SandboxError::Runtime { message, .. }) if is_absent(&message) => {
                return Ok(ContainerState::Absent);
            }
            Err(error) => return Err(error),
        };
        let state: State = serde_json::from_slice(&out).map_err(|error| {
            let message = format!("its answer can't be read: {error}");
            self.failed("tell the container's state", message)
        })?;
        Ok(match state.status.as_str() {
            "stopped" => ContainerState::Stopped,
            _ => ContainerState::Alive(state.pid),
        })
    }

    /// Runs an invocation to its end, for at most `limit`, and returns its stdout.
    pub(super) fn run(&self, mut call: Call, limit: Duration) -> Result<Vec<u8>, SandboxError> {
        let path = self.program.clone();
        let io = || SandboxError::io("run", &path);
        let out = tempfile::tempfile_in(self.layout.root()).map_err(io())?;
        let for_child = out.try_clone().map_err(io())?;
        call.command.stdout(for_child).stderr(Stdio::null());
        let mut child = self.spawn(&mut call)?;
        let status = wait(&mut child, limit).map_err(io())?;
        self.outcome(&call, status, limit)?;
        let mut out = out;
        io::Seek::rewind(&mut out).map_err(io())?;
        let mut bytes = Vec::new();
        let mut out = io::Read::take(out, LOG_LEN_MAX);
        io::Read::read_to_end(&mut out, &mut bytes).map_err(io())?;
        Ok(bytes)
    }

    /// Starts an invocation.
    pub(super) fn spawn(&self, call: &mut Call) -> Result<Child, SandboxError> {
        // Drop the command right after the spawn: it holds pipe ends that only the child may keep
        // open.
        let mut command = std::mem::replace(&mut call.command, Command::new(&self.program));
        command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                SandboxError::RuntimeMissing(self.program.display().to_string())
            }
            _ => SandboxError::io("run", &self.program)(error),
        })
    }

    /// Interprets the exit of an invocation; `None`: it exceeded `limit` and was killed.
    pub(super) fn outcome(
        &self,
        call: &Call,
        status: Option<ExitStatus>,
        limit: Duration,
    ) -> Result<(), SandboxError> {
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let said = read_log(call.log.path());
                let message = said.unwrap_or_else(|| match status.signal() {
                    Some(signal) => format!("it was killed by signal {signal}"),
                    None => format!("it says nothing; {status}"),
                });
                Err(self.failed(call.what, message))
            }
            None => {
                let runtime = self.name();
                Err(SandboxError::RuntimeTimeout { runtime, what: call.what, limit })
            }
        }
    }

    fn failed(&self, what: &'static str, message: String) -> SandboxError {
        SandboxError::Runtime { runtime: self.name(), what, message }
    }
}

/// Reports whether a runtime is crun, which leaves more to its caller than runc.
pub(super) fn is_crun(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"crun"))
}

/// Returns the unified hierarchy of a hybrid host if it has controllers. crun refuses such a host
/// (e.g. with hugetlb on v2); if the hierarchy is hidden, it uses v1 for everything.
fn unified_beside_v1() -> Result<Option<PathBuf>, SandboxError> {
    let all = hierarchies()?;
    if all.iter().all(|of| of.version == Version::V2) {
        return Ok(None);
    }
    let unified = all.into_iter().find(|of| of.version == Version::V2);
    Ok(unified.map(|of| of.mountpoint).filter(|dir| {
        let controllers = fs::read_to_string(dir.join("cgroup.controllers"));
        controllers.is_ok_and(|text| !text.trim().is_empty())
    }))
}

#[derive(Deserialize)]
struct State {
    status: String,
    #[serde(default)]
    pid: u32,
}

/// Kills an invocation with its process group.
pub(super) fn kill_call(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process_group(pid, Signal::KILL).ok();
    }
}

/// Waits for a child that leads a process group; `None`: it exceeded `limit` and was killed.
pub(super) fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let ended = loop {
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other? > 0,
        }
    };
    if ended {
        return child.wait().map(Some);
    }
    kill_call(child.id());
    child.wait()?;
    Ok(None)
}

/// Returns the last error in the runtime's log.
fn read_log(path: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let text = fs::read(path).ok()?;
    let start = text.len().saturating_sub(usize::try_from(LOG_LEN_MAX).ok()?);
    let text = String::from_utf8_lossy(text.get(start..)?).into_owned();
    text.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .find(|line| matches!(line.level.as_str(), "error" | "fatal"))
        .map(|line| line.msg.trim().to_owned())
}

/// Reports whether the runtime's message means that the container does not exist.
fn is_absent(message: &str) -> bool {
    message.contains("does not exist") || message.contains("No such file or directory")
}

/// Maps the runtime's message to the exit code that docker uses for a program that can't be
/// executed.
pub(super) fn exec_code(message: &str) -> i32 {
    let lower = message.to_lowercase();
    if lower.contains("executable file not found")
        || (lower.contains("no such file or directory") && !lower.contains("chdir"))
    {
        127
    } else if lower.contains("permission denied")
        || lower.contains("exec format error")
        || lower.contains("is a directory")
        || lower.contains("chdir")
    {
        126
    } else {
        125
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_line_is_the_runtimes_complaint() {
        let log = NamedTempFile::new().unwrap();
        let text = "{\"level\":\"warning\",\"msg\":\"odd\",\"time\":\"\"}\nnot json\n\
            {\"level\":\"error\",\"msg\":\"first\",\"time\":\"\"}\n\
            {\"level\":\"error\",\"msg\":\"exec failed: no such file\\n\",\"time\":\"\"}\n\
            {\"level\":\"debug\",\"msg\":\"x\"}\n";
        fs::write(log.path(), text).unwrap();
        assert_eq!(read_log(log.path()).unwrap(), "exec failed: no such file");
        fs::write(log.path(), "").unwrap();
        assert_eq!(read_log(log.path()), None);
    }

    #[test]
    fn programs_that_can_not_be_run_have_dockers_exit_codes() {
        for (message, code) in [
            ("exec: \"x\": executable file not found in $PATH", 127),
            ("exec: \"/x\": stat /x: no such file or directory", 127),
            ("executable file `x` not found in $PATH: No such file or directory", 127),
            ("exec: \"/etc\": is a directory: permission denied", 126),
            ("exec /x: exec format error", 126),
            ("cannot chdir to cwd (\"/x\"): no such file or directory", 126),
            ("container is paused", 125),
        ] {
            assert_eq!(exec_code(message), code, "{message}");
        }
    }

    #[test]
    fn a_runtime_that_is_not_there_is_named() {
        for name in ["no-such-runtime", "/no/such/runtime"] {
            let error = Runtime::choose(Some(name)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("--runtime"), "{error}");
        }
    }

    #[test]
    fn a_call_that_takes_too_long_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]).process_group(0);
        let mut child = command.spawn().unwrap();
        assert!(wait(&mut child, Duration::from_millis(1)).unwrap().is_none());
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        while kill_process_group(group, Signal::KILL).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
