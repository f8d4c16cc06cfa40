//! The state shared by all parts of a monitor.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use inlay_mounts::ProcessId;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::super::cgroup::Freezer;
use super::super::error::SandboxError;
use super::super::exit::Exit;
use super::super::files::Config;
use super::super::layout::Layout;
use super::super::protocol::{Failure, MonitorStatus};
use super::super::runtime::{CALL_WITHIN, Call, Runtime, exec_code, kill_call};
use super::super::signals::SIGKILL;
use super::first::First;
use super::reaper::Reaper;

/// Invokes the runtime; the reaper delivers the exit statuses.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) runtime: Runtime,
    pub(super) reaper: Reaper,
}

impl Calls {
    /// Runs an invocation to its end. Callers interested in a process it starts must hold
    /// [`Reaper::calling`] around this.
    pub(super) async fn make(&self, mut call: Call) -> Result<(), SandboxError> {
        let child = self.runtime.spawn(&mut call)?;
        let pid = child.id();
        let number = i32::try_from(pid).unwrap_or_default();
        let ended = timeout(CALL_WITHIN, self.reaper.of_new(number)).await;
        let status = ended.ok().and_then(Result::ok);
        if status.is_none() {
            kill_call(pid);
        }
        self.runtime.outcome(&call, status, CALL_WITHIN)
    }
}

/// The state of the sandbox.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) layout: Layout,
    pub(super) calls: Calls,
    pub(super) monitor: ProcessId,
    pub(super) init: ProcessId,
    /// A pidfd of the first process.
    pub(super) handle: OwnedFd,
    pub(super) freezer: Freezer,
    pub(super) first: Rc<First>,
    pub(super) stage: Cell<Stage>,
    /// How the first process ended. Set once, after everything is recorded.
    pub(super) exit: watch::Sender<Option<Exit>>,
    pub(super) execs: Cell<usize>,
    pub(super) connections: Cell<usize>,
    /// Notified when a connection has closed.
    pub(super) left: Notify,
    pub(super) freezes: Cell<usize>,
    /// Whether another program had frozen the sandbox before the first of `freezes`: it then stays
    /// frozen after the last.
    pub(super) frozen_before: Cell<bool>,
    /// Notified when the first process is sent SIGKILL.
    pub(super) killed: Notify,
    /// Makes file names unique.
    pub(super) next_file: Cell<u64>,
}

/// The stage of the first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for its start.
    Created,
    /// It is being started.
    Starting,
    /// It was started.
    Started,
    /// It could not be started; the exit code for that.
    NotStartable(i32),
}

/// A counter incremented until this is dropped.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    /// Increments the counter; `None` if it has reached `limit`.
    pub(super) fn of(cell: &'a Cell<usize>, limit: usize) -> Option<Self> {
        if cell.get() >= limit {
            return None;
        }
        cell.set(cell.get() + 1);
        Some(Self(cell))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Shared {
    pub(super) fn status(&self) -> MonitorStatus {
        MonitorStatus {
            monitor: self.monitor,
            init: self.init,
            started: self.stage.get() == Stage::Started,
            exit: self.exit.borrow().clone(),
            execs: self.execs.get(),
            frozen: self.freezes.get() > 0,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Resolves when the first process has exited and that is recorded.
    pub(super) async fn ended(&self) -> Option<Exit> {
        let mut receiver = self.exit.subscribe();
        let exit = receiver.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.clone())
    }

    /// Sends a signal to the first process.
    pub(super) async fn signal(&self, number: i32) -> Result<(), Failure> {
        if self.has_ended() {
            return Err(Failure::NotRunning);
        }
        match send(&self.handle, number) {
            Ok(()) => {
                if number == SIGKILL {
                    self.killed.notify_waiters();
                    self.thaw_to_end();
                }
                Ok(())
            }
            // The library has no name for real-time signals; the runtime can send them.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let call = self.calls.runtime.kill(number).map_err(|e| failure(&e))?;
                self.calls.make(call).await.map_err(|e| failure(&e))
            }
            Err(_) => Err(Failure::NotRunning),
        }
    }

    /// Thaws a sandbox that was killed, no matter what froze it: frozen processes do not exit.
    fn thaw_to_end(&self) {
        self.frozen_before.set(false);
        if self.freezes.get() == 0
            && let Err(error) = self.freezer.thaw()
        {
            tracing::warn!(%error, "can't thaw the killed sandbox");
        }
    }

    /// Waits until no client holds the sandbox frozen. Polls.
    pub(super) async fn thawed(&self) {
        while self.freezes.get() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(super) fn file_number(&self) -> u64 {
        let number = self.next_file.get();
        self.next_file.set(number + 1);
        number
    }
}

/// Sends a signal to a process; fails with `InvalidInput` for real-time signals.
pub(super) fn send(handle: &OwnedFd, number: i32) -> io::Result<()> {
    let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_send_signal(handle, signal)?)
}

/// The reply for an error other than a program that can't be executed.
pub(super) fn failure(error: &SandboxError) -> Failure {
    Failure::Other { message: error.to_string() }
}

/// The reply for an error of the runtime in executing `program`.
pub(super) fn run_failure(error: &SandboxError, program: &str) -> Failure {
    match error {
        SandboxError::Runtime { runtime, message, .. } => Failure::Exec {
            message: format!("{runtime} can't run {program:?} in the sandbox: {message}"),
            code: exec_code(message),
        },
        other => failure(other),
    }
}

/// Returns the first process's program.
pub(super) fn first_program(layout: &Layout) -> String {
    // Used only in an error message, which without it names no program.
    let config = Config::read(layout).ok().flatten();
    let process = config.as_ref().and_then(|config| config.get("process"));
    let program = process.and_then(|process| process.pointer("/args/0")?.as_str());
    program.unwrap_or_default().to_owned()
}
