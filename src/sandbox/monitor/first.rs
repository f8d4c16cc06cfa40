//! The streams of the first process: written to the log, and to whoever is attached.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::{mpsc, watch};

use super::super::logs::{LogStream, LogWriter};
use super::super::protocol::{Frame, FrameKind, Shown};
use super::attach::Input;
use super::recent::Recent;

/// How many frames wait for whoever is attached. Then the process waits, too, as with a pipe, until it
/// has ended: what its pipes still hold then waits in memory, and its end for nobody.
const WAITING_MAX: usize = 16;

/// The first process's streams.
#[derive(Debug)]
pub(super) struct First {
    pub(super) input: Input,
    attached: RefCell<Attached>,
    log: RefCell<LogWriter>,
    recent: RefCell<Recent>,
}

#[derive(Debug)]
enum Attached {
    Open(Vec<To>),
    /// Nothing comes any more.
    Closed,
}

/// What is passed to one who is attached.
#[derive(Debug, Clone)]
struct To {
    frames: mpsc::Sender<Frame>,
    /// What comes after those.
    rest: Rc<RefCell<VecDeque<Frame>>>,
}

/// What one who is attached gets.
#[derive(Debug)]
pub(super) struct Attachment {
    /// What comes first.
    missed: VecDeque<Frame>,
    frames: mpsc::Receiver<Frame>,
    rest: Rc<RefCell<VecDeque<Frame>>>,
}

impl Attachment {
    /// What the process has written next. `None` when all was read.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        if let Some(frame) = self.missed.pop_front() {
            return Some(frame);
        }
        match self.frames.recv().await {
            Some(frame) => Some(frame),
            None => self.rest.borrow_mut().pop_front(),
        }
    }
}

impl To {
    /// Waits for room, while the process runs.
    async fn pass(&self, frame: Frame, ended: &mut watch::Receiver<bool>) {
        tokio::select! {
            biased;
            // An error means that it has ended, too.
            _ = ended.wait_for(|ended| *ended) => {}
            // Who has gone is left out later.
            _ = self.frames.send(frame.clone()) => return,
        }
        self.rest.borrow_mut().push_back(frame);
    }
}

impl First {
    pub(super) fn new(input: Input, log: LogWriter) -> Rc<Self> {
        let attached = RefCell::new(Attached::Open(Vec::new()));
        Rc::new(Self { input, attached, log: RefCell::new(log), recent: RefCell::default() })
    }

    /// What the process writes from now on, or after what was `shown`. Ends when all was read. Fails
    /// with the number of bytes that are not kept any more.
    pub(super) fn attach(&self, shown: Option<Shown>) -> Result<Attachment, u64> {
        let missed = match shown {
            Some(shown) => self.recent.borrow().after(shown)?,
            None => VecDeque::new(),
        };
        let (sender, frames) = mpsc::channel(WAITING_MAX);
        let rest = Rc::default();
        if let Attached::Open(all) = &mut *self.attached.borrow_mut() {
            all.push(To { frames: sender, rest: Rc::clone(&rest) });
        }
        Ok(Attachment { missed, frames, rest })
    }

    /// Takes all that comes, until nothing can come any more. `ended` tells when the process has ended.
    pub(super) async fn distribute(
        &self,
        mut output: mpsc::Receiver<Frame>,
        mut ended: watch::Receiver<bool>,
    ) {
        while let Some(frame) = output.recv().await {
            let stream = match frame.kind {
                FrameKind::Stderr => LogStream::Stderr,
                _ => LogStream::Stdout,
            };
            self.log.borrow_mut().take(stream, &frame.bytes);
            // Before it is seen who is attached: who comes now has it from here.
            self.recent.borrow_mut().take(&frame);
            let all = match &*self.attached.borrow() {
                Attached::Open(all) => all.clone(),
                Attached::Closed => Vec::new(),
            };
            for one in &all {
                one.pass(frame.clone(), &mut ended).await;
            }
            if let Attached::Open(all) = &mut *self.attached.borrow_mut() {
                all.retain(|one| !one.frames.is_closed());
            }
        }
        self.log.borrow_mut().finish();
        *self.attached.borrow_mut() = Attached::Closed;
    }
}
