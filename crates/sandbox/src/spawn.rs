//! Spawns a sandbox's monitor and reaps it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use inlay_base::bytes::filled;
use inlay_base::programs::SERVICE_VARIABLES;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::client::Monitor;
use super::error::SandboxError;
use super::layout::Layout;
use super::protocol::{Failure, LINE_LEN_MAX};

/// Deadline for a monitor to create its container: more than the runtime's own timeout.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// Monitors that this process has spawned. They are meant to outlive it, so no thread waits for
/// them; [`reap_monitors`] collects the ones that have exited.
static STARTED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// A monitor's first message on its stdout: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Report {
    /// The container was created.
    Ready,
    /// The creation failed and was rolled back.
    Failed(Failure),
}

/// Reaps spawned monitors that have exited. Does not block.
pub fn reap_monitors() {
    STARTED.lock().retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
}

pub(super) fn spawn(
    layout: &Layout,
    program: &Path,
    words: &[OsString],
) -> Result<Monitor, SandboxError> {
    reap_monitors();
    let monitor = Monitor::of(layout);
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(open_log(layout)?);
    for variable in SERVICE_VARIABLES {
        command.env_remove(variable);
    }
    // Not the leader of a process group, which could not start the session that the monitor starts.
    command.current_dir("/");
    let mut child = command.spawn().map_err(SandboxError::io("start", program))?;
    let report = match child.stdout.take() {
        Some(pipe) => read_report(pipe),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    match report {
        Ok(Report::Ready) => {
            STARTED.lock().push(child);
            Ok(monitor)
        }
        Ok(Report::Failed(failure)) => {
            child.wait().map_err(SandboxError::io("wait for", program))?;
            Err(monitor.refused(failure))
        }
        Err(error) => {
            // It may still be running: kill it, and `remove` cleans up after it.
            child.kill().map_err(SandboxError::io("end", program))?;
            let status = child.wait().map_err(SandboxError::io("wait for", program))?;
            Err(monitor.monitor_error(format!("it does not get ready ({error}, {status})")))
        }
    }
}

/// Returns a path by which the current executable can be run again, even if its file has been
/// replaced in the meantime.
pub(super) fn own_program() -> Result<PathBuf, SandboxError> {
    let link = PathBuf::from("/proc/self/exe");
    let program = fs::read_link(&link).map_err(SandboxError::io("read", &link))?;
    Ok(if program.exists() { program } else { link })
}

fn open_log(layout: &Layout) -> Result<File, SandboxError> {
    let path = layout.monitor_log();
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(&path).map_err(SandboxError::io("open", &path))
}

fn read_report(mut pipe: ChildStdout) -> io::Result<Report> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while !line.ends_with(b"\n") && line.len() < LINE_LEN_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match pipe.read(&mut piece)? {
            0 => break,
            len => line.extend_from_slice(filled(&piece, len)?),
        }
    }
    if line.is_empty() {
        return Err(io::Error::other("it exited without a report"));
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::hierarchies;
    use super::super::id::SandboxId;
    use super::super::monitor;
    use super::*;
    use rustix::stdio::dup2_stdout;

    /// Set in the monitors of these tests: the state directory and the sandbox's id.
    const SANDBOX: &str = "INLAY_TEST_SANDBOX";

    /// Runs a test of this binary as a monitor, by the command in the remaining arguments if there
    /// are any. Its stdout is a file, and the pipe to its parent is descriptor 3.
    const RUN: &str = r#"
exec 3>&1 4</proc/$PPID/exe >"$1"
export INLAY_TEST_SANDBOX="$2"
name=$3
shift 3
exec "$@" /proc/self/fd/4 --exact "$name" --nocapture
"#;

    /// A sandbox without a record, so that its monitor fails.
    struct Box {
        layout: Layout,
        dir: tempfile::TempDir,
    }

    impl Box {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::of(dir.path(), &SandboxId::random().unwrap());
            fs::create_dir_all(layout.root()).unwrap();
            Self { layout, dir }
        }

        /// Spawns its monitor, which is the test `name` run by the command `by`, and returns the
        /// error and its output.
        fn monitor(&self, name: &str, by: &[&str]) -> (SandboxError, String) {
            let out = self.dir.path().join("out");
            let sandbox = format!("{} {}", self.dir.path().display(), self.layout.id());
            let name = format!("spawn::tests::{name}");
            let words = ["-c", RUN, "sh", out.to_str().unwrap(), &sandbox, &name];
            let words: Vec<_> = words.iter().chain(by).map(OsString::from).collect();
            let error = spawn(&self.layout, "/bin/sh".as_ref(), &words).unwrap_err();
            (error, fs::read_to_string(&out).unwrap())
        }
    }

    /// In a monitor: returns the arguments to run it with.
    fn as_monitor() -> Option<(PathBuf, SandboxId)> {
        let sandbox = std::env::var(SANDBOX).ok()?;
        let (state, id) = sandbox.rsplit_once(' ').unwrap();
        Some((state.into(), id.parse().unwrap()))
    }

    #[test]
    fn a_monitor_has_a_session_of_its_own() {
        if let Some((state, id)) = as_monitor() {
            monitor::run(&state, &id).unwrap_err();
            println!("a session of its own: {}", monitor::leads_session());
            return;
        }
        let sandbox = Box::new();
        // It fails before its report, which would redirect its stdout.
        fs::create_dir(sandbox.layout.monitor_lock()).unwrap();
        // The second monitor can't see the leader of the session that it is started in.
        for by in [&[][..], &["unshare", "--pid", "--fork", "--mount-proc"]] {
            let (error, said) = sandbox.monitor("a_monitor_has_a_session_of_its_own", by);
            assert!(said.contains("a session of its own: true"), "{by:?}: {said} {error}");
        }
    }

    /// Cgroups nested more deeply than inlay removes.
    struct Deep(Vec<PathBuf>);

    impl Drop for Deep {
        fn drop(&mut self) {
            self.0.iter().rev().for_each(|dir| fs::remove_dir(dir).unwrap());
        }
    }

    #[test]
    fn a_failed_creation_is_reported_even_if_it_can_not_be_cleaned_up() {
        if let Some((state, id)) = as_monitor() {
            io::Write::flush(&mut io::stdout()).unwrap();
            let pipe = OpenOptions::new().write(true).open("/proc/self/fd/3").unwrap();
            dup2_stdout(pipe).unwrap();
            monitor::run(&state, &id).unwrap_err();
            return;
        }
        let sandbox = Box::new();
        let hierarchy = hierarchies().unwrap().remove(0);
        let mut dir = hierarchy.mountpoint.join(sandbox.layout.cgroup().trim_start_matches('/'));
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        let mut deep = Deep(Vec::new());
        for _ in 0..70 {
            fs::create_dir(&dir).unwrap();
            deep.0.push(dir.clone());
            dir.push("d");
        }
        let name = "a_failed_creation_is_reported_even_if_it_can_not_be_cleaned_up";
        let (error, said) = sandbox.monitor(name, &[]);
        assert!(matches!(error, SandboxError::Refused(_)), "{said} {error}");
        assert_eq!(error.to_string(), "the sandbox has no record");
    }
}
