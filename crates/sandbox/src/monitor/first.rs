//! Distributes the streams of the first process to the log and to attached clients.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::{mpsc, watch};

use super::super::logs::{LogStream, LogWriter};
use super::super::protocol::{Frame, FrameKind, StreamPosition};
use super::attach::Input;
use super::recent::Recent;

/// The number of frames buffered per attached client. When they are full, the process blocks, as on
/// a pipe. Once it has exited, the remaining output is buffered in memory, so that no client delays
/// the recording of its end.
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
    /// No more output can follow.
    Closed,
}

/// The sending side of an attached client.
#[derive(Debug, Clone)]
struct To {
    frames: mpsc::Sender<Frame>,
    /// The frames that follow the ones in the channel.
    rest: Rc<RefCell<VecDeque<Frame>>>,
}

/// The receiving side of an attached client.
#[derive(Debug)]
pub(super) struct Attachment {
    /// Earlier output that comes first.
    missed: VecDeque<Frame>,
    frames: mpsc::Receiver<Frame>,
    rest: Rc<RefCell<VecDeque<Frame>>>,
}

impl Attachment {
    /// Returns the next frame of output; `None` at the end.
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
    /// Queues a frame. Waits for room while the process is running.
    async fn pass(&self, frame: Frame, ended: &mut watch::Receiver<bool>) {
        tokio::select! {
            biased;
            // An error means that the process has exited, too.
            _ = ended.wait_for(|ended| *ended) => {}
            // The caller drops disconnected clients later.
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

    /// Attaches a client: to the output from now on, or after `shown`. Fails with the number of
    /// bytes that are no longer kept.
    pub(super) fn attach(&self, shown: Option<StreamPosition>) -> Result<Attachment, u64> {
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

    /// Distributes `output` until its end. `ended` becomes true when the process has exited.
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
            // Keep it before reading the list of clients: a client that attaches now gets it from
            // here.
            self.recent.borrow_mut().take(&frame);
            // Clone the list: no borrow may be held across an await.
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
