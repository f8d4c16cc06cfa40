//! Relays a process's streams over a connection, as frames in both directions.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::super::protocol::{Frame, FrameKind, HEADER_LEN, STDIN_WINDOW, StdinFlow};
use super::channel::Channel;
use super::conn::{Conn, ReadHalf};

/// The size of the read buffer, in bytes.
const PIECE_LEN: usize = 32 << 10;
/// How long a pipe may be silent after its process has exited before it counts as finished:
/// descendants may hold it open forever.
const SILENT_FOR: Duration = Duration::from_millis(300);
/// How long the output of descendants is relayed after the process has exited.
const FOLLOW_FOR: Duration = Duration::from_millis(500);
/// How long stdin received from a client that has disconnected is still offered to the process.
const LEFT_WITHIN: Duration = Duration::from_millis(500);
/// The capacity of the stdin queue, in bytes: the client's window plus room for the end of stdin.
const QUEUE_LEN_MAX: usize = STDIN_WINDOW as usize + 1024;
/// The end-of-file character of a terminal, control-D.
const END_OF_INPUT: u8 = 4;

/// The stdin of a process.
#[derive(Debug)]
pub(super) enum Input {
    /// None.
    None,
    /// A pipe; empty once the client has closed it.
    Pipe(RefCell<Option<Rc<Channel>>>),
    /// A terminal.
    Terminal(Rc<Channel>),
}

impl Input {
    pub(super) fn pipe(channel: Channel) -> Self {
        Self::Pipe(RefCell::new(Some(Rc::new(channel))))
    }

    /// Handles a frame from a client. Input that the process does not accept is dropped.
    async fn take(&self, frame: &Frame) {
        let channel = match self {
            Self::None => None,
            Self::Pipe(channel) => channel.borrow().clone(),
            Self::Terminal(channel) => Some(Rc::clone(channel)),
        };
        let Some(channel) = channel else { return };
        match (frame.kind, self) {
            (FrameKind::Stdin, _) => {
                channel.write_all(&frame.bytes).await.ok();
            }
            (FrameKind::StdinEof, Self::Pipe(channel)) => {
                channel.borrow_mut().take();
            }
            (FrameKind::StdinEof, Self::Terminal(_)) => {
                channel.write_all(&[END_OF_INPUT]).await.ok();
            }
            (FrameKind::Resize, Self::Terminal(_)) => {
                if let Some(size) = frame.window_size() {
                    channel.resize(size).ok();
                }
            }
            _ => {}
        }
    }
}

/// Reads the output of a process. After its exit, relays everything it has written, and for a short
/// time the output of descendants that still hold its pipe, which they may do forever.
pub(super) async fn pump(
    channel: Rc<Channel>,
    kind: FrameKind,
    to: mpsc::Sender<Frame>,
    mut ended: watch::Receiver<bool>,
) {
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let len = tokio::select! {
            biased;
            // An error means that the process has exited, too.
            _ = ended.wait_for(|ended| *ended) => break,
            read = channel.read(&mut piece) => read.unwrap_or(0),
        };
        let bytes = piece.get(..len).unwrap_or_default();
        if bytes.is_empty() || to.send(Frame::new(kind, bytes)).await.is_err() {
            return;
        }
    }
    // All output of the process is in the pipe now, and is relayed however slow the client is.
    let mut owed = channel.waiting().unwrap_or(0);
    let follow_until = Instant::now() + FOLLOW_FOR;
    loop {
        let left = follow_until.saturating_duration_since(Instant::now());
        let patience = if owed > 0 { SILENT_FOR } else { left.min(SILENT_FOR) };
        let len = match timeout(patience, channel.read(&mut piece)).await {
            Ok(read) => read.unwrap_or(0),
            Err(_) => 0,
        };
        let bytes = piece.get(..len).unwrap_or_default();
        if bytes.is_empty() || to.send(Frame::new(kind, bytes)).await.is_err() {
            return;
        }
        owed = owed.saturating_sub(len);
        if owed == 0 && Instant::now() >= follow_until {
            return;
        }
    }
}

/// A received stdin frame that the process has not taken yet.
struct Queued {
    frame: Frame,
    /// Its share of the queue's capacity.
    _room: OwnedSemaphorePermit,
}

/// The window credit that the client has not received yet.
#[derive(Default)]
struct Taken {
    len: Cell<u32>,
    more: Notify,
}

impl Taken {
    fn add(&self, len: u32) {
        self.len.set(self.len.get().saturating_add(len));
        self.more.notify_one();
    }

    /// Waits until there is credit, and takes it.
    async fn next(&self) -> u32 {
        loop {
            match self.len.take() {
                0 => self.more.notified().await,
                len => return len,
            }
        }
    }
}

/// Which side ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process exited, and the client has received its exit code.
    Process,
    /// The client disconnected.
    Client,
}

/// Relays frames in both directions until the process has exited or the client has disconnected.
/// `exit` resolves to the exit code; `signal` sends a signal; `output` returns the next frame of
/// output, and `None` at its end.
///
/// Stdin has a queue of its own, so that signals overtake it and a disconnect is noticed while the
/// process does not read.
pub(super) async fn converse(
    conn: &mut Conn,
    mut output: impl AsyncFnMut() -> Option<Frame>,
    exit: impl Future<Output = i32>,
    (input, flow): (&Input, StdinFlow),
    signal: impl AsyncFn(i32),
) -> Ended {
    let (from, to) = conn.halves();
    let taken = Taken::default();
    let told = || async {
        match flow {
            StdinFlow::Windowed => taken.next().await,
            StdinFlow::Unbounded => std::future::pending().await,
        }
    };
    let write = async {
        loop {
            let frame = tokio::select! {
                biased;
                len = told() => Frame::taken(len),
                frame = output() => match frame {
                    Some(frame) => frame,
                    None => break,
                },
            };
            if to.frame(&frame).await.is_err() {
                return Ended::Client;
            }
        }
        let mut exit = pin!(exit);
        loop {
            let (frame, last) = tokio::select! {
                biased;
                code = &mut exit => (Frame::exit(code), true),
                len = told() => (Frame::taken(len), false),
            };
            match to.frame(&frame).await {
                Ok(()) if last => return Ended::Process,
                Ok(()) => {}
                Err(_) => return Ended::Client,
            }
        }
    };
    tokio::select! {
        ended = write => ended,
        () = receive(from, input, &taken, signal) => Ended::Client,
    }
}

/// Receives a client's frames until it disconnects.
async fn receive(from: &mut ReadHalf, input: &Input, taken: &Taken, signal: impl AsyncFn(i32)) {
    let room = Arc::new(Semaphore::new(QUEUE_LEN_MAX));
    let (queue, mut queued) = mpsc::unbounded_channel::<Queued>();
    let reading = async {
        // Dropped when the client has disconnected, which closes the queue.
        let queue = queue;
        while let Ok(Some(frame)) = next_frame(from).await {
            match (frame.kind, frame.bytes.first()) {
                (FrameKind::Signal, Some(number)) => signal(i32::from(*number)).await,
                (FrameKind::Stdin | FrameKind::StdinEof, _) => {
                    // A client that respects its window never blocks here.
                    let room = Arc::clone(&room).acquire_many_owned(frame.stdin_cost()).await;
                    let Ok(room) = room else { return };
                    if queue.send(Queued { frame, _room: room }).is_err() {
                        return;
                    }
                }
                _ => input.take(&frame).await,
            }
        }
    };
    let feeding = async {
        while let Some(Queued { frame, .. }) = queued.recv().await {
            input.take(&frame).await;
            if frame.kind == FrameKind::Stdin {
                taken.add(frame.stdin_cost());
            }
        }
    };
    let mut feeding = pin!(feeding);
    tokio::select! {
        biased;
        () = reading => {}
        // Completes only after the queue is closed.
        () = &mut feeding => return,
    }
    timeout(LEFT_WITHIN, feeding).await.ok();
}

async fn next_frame(from: &mut ReadHalf) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_LEN];
    match from.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let (kind, len) = Frame::parse_header(header)?;
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).await?;
    Ok(Some(Frame { kind, bytes }))
}
