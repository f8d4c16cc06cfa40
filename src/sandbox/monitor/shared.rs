//! What all parts of a monitor know.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::super::cgroup::Freezer;
use super::super::error::SandboxError;
use super::super::exit::Exit;
use super::super::files;
use super::super::layout::Layout;
use super::super::protocol::{Failure, MonitorStatus};
use super::super::runtime::{CALL_WITHIN, Call, Runtime, exec_code, kill_call};
use super::super::signals::SIGKILL;
use super::first::First;
use super::reaper::Reaper;
use crate::mount::ProcessId;

/// A call of the runtime, and who hears of its end.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) runtime: Runtime,
    pub(super) reaper: Reaper,
}

impl Calls {
    /// Makes a call and waits for its end. Whoever wants to know of a process that the call starts
    /// holds [`Reaper::calling`] around it.
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

/// The sandbox as its monitor sees it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) layout: Layout,
    pub(super) calls: Calls,
    pub(super) monitor: ProcessId,
    pub(super) init: ProcessId,
    /// The first process.
    pub(super) handle: OwnedFd,
    pub(super) freezer: Freezer,
    pub(super) first: Rc<First>,
    pub(super) stage: Cell<Stage>,
    /// How the first process ended. Set once, when everything is recorded.
    pub(super) exit: watch::Sender<Option<Exit>>,
    pub(super) execs: Cell<usize>,
    pub(super) connections: Cell<usize>,
    /// Told when a connection has ended.
    pub(super) left: Notify,
    pub(super) freezes: Cell<usize>,
    /// Told when the first process gets a signal that nothing survives.
    pub(super) killed: Notify,
    /// Names for files.
    pub(super) next_file: Cell<u64>,
}

/// How far the first process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits to be started.
    Created,
    /// It is being started.
    Starting,
    /// It was started.
    Started,
    /// It could not be started: the exit code for that.
    NotStartable(i32),
}

/// Something counted, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    /// `None` if there are `limit` already.
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

    /// Resolves when the first process has ended and that is recorded.
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
                }
                Ok(())
            }
            // One that the library has no name for: the runtime sends all.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let call = self.calls.runtime.kill(number).map_err(|e| failure(&e))?;
                self.calls.make(call).await.map_err(|e| failure(&e))
            }
            Err(_) => Err(Failure::NotRunning),
        }
    }

    /// Waits until nobody holds the sandbox frozen.
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

/// Sends a signal to a process; real-time signals are invalid.
pub(super) fn send(handle: &OwnedFd, number: i32) -> io::Result<()> {
    let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_send_signal(handle, signal)?)
}

/// What is told of an error that has nothing to do with a program that could not be run.
pub(super) fn failure(error: &SandboxError) -> Failure {
    Failure::Other { message: error.to_string() }
}

/// What is told when the runtime could not run `program`.
pub(super) fn run_failure(error: &SandboxError, program: &str) -> Failure {
    match error {
        SandboxError::Runtime { runtime, message, .. } => Failure::Exec {
            message: format!("{runtime} can't run {program:?} in the sandbox: {message}"),
            code: exec_code(message),
        },
        other => failure(other),
    }
}

/// What the first process runs.
pub(super) fn first_program(layout: &Layout) -> String {
    let config = files::read_json::<Value>(&layout.config()).ok().flatten();
    let program = config.as_ref().and_then(|config| config.pointer("/process/args/0")?.as_str());
    program.unwrap_or_default().to_owned()
}
