//! Reaps all children: runtime invocations, and the processes they leave to this subreaper.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;

use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// The children and their waiters.
#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<i32, oneshot::Sender<ExitStatus>>,
    /// The statuses of children that exited during a runtime invocation and before anything waited
    /// for them: a process may exit before its pid is read.
    early: HashMap<i32, ExitStatus>,
    /// The number of runtime invocations in flight.
    calls: usize,
}

/// Delivers exit statuses to their waiters.
#[derive(Debug, Clone, Default)]
pub(super) struct Reaper(Rc<RefCell<Table>>);

/// A runtime invocation in flight.
#[derive(Debug)]
pub(super) struct Calling(Reaper);

impl Drop for Calling {
    fn drop(&mut self) {
        let mut table = self.0.0.borrow_mut();
        table.calls -= 1;
        if table.calls == 0 {
            // Pids are reused: these statuses can no longer be attributed.
            table.early.clear();
        }
    }
}

impl Reaper {
    /// Subscribes to SIGCHLD. Call it before the first child is spawned.
    pub(super) fn listen() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Keeps the statuses of unknown children until the result is dropped.
    pub(super) fn calling(&self) -> Calling {
        self.0.borrow_mut().calls += 1;
        Calling(self.clone())
    }

    /// Waits for the child `pid`, which this process has just spawned.
    pub(super) fn of_new(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        self.0.borrow_mut().early.remove(&pid);
        self.of(pid).0
    }

    /// Waits for the child `pid`, which was started by a runtime invocation in flight. Also returns
    /// a pidfd, unless the child has already exited.
    pub(super) fn of(&self, pid: i32) -> (oneshot::Receiver<ExitStatus>, Option<OwnedFd>) {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.0.borrow_mut();
        if let Some(status) = table.early.remove(&pid) {
            sender.send(status).ok();
            return (receiver, None);
        }
        table.waiting.insert(pid, sender);
        // Only this reaper waits for it, so its pid can't have been reused.
        let pid = Pid::from_raw(pid);
        (receiver, pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
    }

    /// Reaps forever.
    pub(super) async fn run(self, mut ends: Signal) {
        loop {
            self.reap();
            if ends.recv().await.is_none() {
                return;
            }
        }
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let status = ExitStatus::from_raw(status.as_raw());
            let pid = pid.as_raw_nonzero().get();
            let mut table = self.0.borrow_mut();
            if let Some(waits) = table.waiting.remove(&pid) {
                waits.send(status).ok();
            } else if table.calls > 0 {
                table.early.insert(pid, status);
            }
        }
    }
}

/// Returns the exit code by shell convention.
pub(super) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
