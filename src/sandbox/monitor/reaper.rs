//! Reaps all children: calls of the runtime, and processes that it has left to this process.

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

/// Who waits for which child.
#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<i32, oneshot::Sender<ExitStatus>>,
    /// Children that ended before anybody knew of them, while a call of the runtime was under way:
    /// a process that it has started may end before its number is read.
    early: HashMap<i32, ExitStatus>,
    /// How many calls are under way.
    calls: usize,
}

/// Hands the ends of children to those who wait for them.
#[derive(Debug, Clone, Default)]
pub(super) struct Reaper(Rc<RefCell<Table>>);

/// A call of the runtime that is under way.
#[derive(Debug)]
pub(super) struct Calling(Reaper);

impl Drop for Calling {
    fn drop(&mut self) {
        let mut table = self.0.0.borrow_mut();
        table.calls -= 1;
        if table.calls == 0 {
            // Numbers are used again: nobody will ask for these.
            table.early.clear();
        }
    }
}

impl Reaper {
    /// The signal that tells of ends. To be had before the first child is started.
    pub(super) fn listen() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Keeps ends that nobody waits for yet, until the answer is dropped.
    pub(super) fn calling(&self) -> Calling {
        self.0.borrow_mut().calls += 1;
        Calling(self.clone())
    }

    /// The end of the child `pid`, which has just been started by this process.
    pub(super) fn of_new(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        self.0.borrow_mut().early.remove(&pid);
        self.of(pid).0
    }

    /// The end of the child `pid`, which the runtime has started in a call that is under way, and a
    /// handle of it, unless it has ended.
    pub(super) fn of(&self, pid: i32) -> (oneshot::Receiver<ExitStatus>, Option<OwnedFd>) {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.0.borrow_mut();
        if let Some(status) = table.early.remove(&pid) {
            sender.send(status).ok();
            return (receiver, None);
        }
        table.waiting.insert(pid, sender);
        // Nobody else reaps it, so that its number is its own.
        let pid = Pid::from_raw(pid);
        (receiver, pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
    }

    /// Reaps for ever.
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

/// The exit code as shells have it.
pub(super) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
