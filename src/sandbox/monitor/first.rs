//! The streams of the first process: written to the log, and to whoever is attached.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::mpsc;

use super::super::logs::{LogStream, LogWriter};
use super::super::protocol::{Frame, FrameKind};
use super::attach::Input;

/// How many frames wait for whoever is attached. Then the process waits, too, as with a pipe.
const WAITING_MAX: usize = 16;

/// The first process's streams.
#[derive(Debug)]
pub(super) struct First {
    pub(super) input: Input,
    attached: RefCell<Attached>,
    log: RefCell<LogWriter>,
}

#[derive(Debug)]
enum Attached {
    Open(Vec<mpsc::Sender<Frame>>),
    /// Nothing comes any more.
    Closed,
}

impl First {
    pub(super) fn new(input: Input, log: LogWriter) -> Rc<Self> {
        let attached = RefCell::new(Attached::Open(Vec::new()));
        Rc::new(Self { input, attached, log: RefCell::new(log) })
    }

    /// What the process writes from now on. Ends when all was read.
    pub(super) fn attach(&self) -> mpsc::Receiver<Frame> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        if let Attached::Open(all) = &mut *self.attached.borrow_mut() {
            all.push(sender);
        }
        receiver
    }

    /// Takes all that comes, until nothing can come any more.
    pub(super) async fn distribute(&self, mut output: mpsc::Receiver<Frame>) {
        while let Some(frame) = output.recv().await {
            let stream = match frame.kind {
                FrameKind::Stderr => LogStream::Stderr,
                _ => LogStream::Stdout,
            };
            self.log.borrow_mut().take(stream, &frame.bytes);
            let all = match &*self.attached.borrow() {
                Attached::Open(all) => all.clone(),
                Attached::Closed => Vec::new(),
            };
            for one in &all {
                // Who has gone is left out below.
                one.send(frame.clone()).await.ok();
            }
            if let Attached::Open(all) = &mut *self.attached.borrow_mut() {
                all.retain(|one| !one.is_closed());
            }
        }
        self.log.borrow_mut().finish();
        *self.attached.borrow_mut() = Attached::Closed;
    }
}
