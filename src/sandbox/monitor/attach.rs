//! A process's streams on a connection: frames both ways.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::super::protocol::{Frame, FrameKind, HEADER_LEN};
use super::channel::Channel;
use super::conn::{Conn, ReadHalf};

/// How much is read at once, in bytes.
const PIECE_LEN: usize = 32 << 10;
/// How long a pipe may be silent after its process has ended, until it counts as finished: others that
/// it has started may hold it for ever.
const SILENT_FOR: Duration = Duration::from_millis(300);
/// How much is read of a pipe after its process has ended, in bytes: more than a pipe holds, which is
/// 1 MiB at most unless the host allows more. Who writes on from elsewhere is not followed for ever.
const LEFT_MAX: usize = 4 << 20;
/// What ends the input of a terminal: its end-of-file character, control-D.
const END_OF_INPUT: u8 = 4;

/// What a process reads.
#[derive(Debug)]
pub(super) enum Input {
    /// Nothing.
    None,
    /// A pipe, until its end is sent.
    Pipe(RefCell<Option<Rc<Channel>>>),
    /// A terminal.
    Terminal(Rc<Channel>),
}

impl Input {
    pub(super) fn pipe(channel: Channel) -> Self {
        Self::Pipe(RefCell::new(Some(Rc::new(channel))))
    }

    /// Takes a frame from a client. What the process does not want is dropped.
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

/// Reads what a process writes until its end, or until the process has ended and nothing comes.
pub(super) async fn pump(
    channel: Rc<Channel>,
    kind: FrameKind,
    to: mpsc::Sender<Frame>,
    mut ended: watch::Receiver<bool>,
) {
    let mut piece = vec![0; PIECE_LEN];
    let mut left = LEFT_MAX;
    loop {
        let silence = async {
            // An error means that the process has ended, too.
            ended.wait_for(|ended| *ended).await.ok();
            sleep(SILENT_FOR).await;
        };
        let len = tokio::select! {
            biased;
            read = channel.read(&mut piece) => read.unwrap_or(0),
            () = silence => 0,
        };
        let bytes = piece.get(..len).unwrap_or_default();
        if bytes.is_empty() || to.send(Frame::new(kind, bytes)).await.is_err() {
            return;
        }
        if *ended.borrow() {
            left = left.saturating_sub(len);
            if left == 0 {
                return;
            }
        }
    }
}

/// Whose end of a conversation came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process ended, and the client was told.
    Process,
    /// The client has gone.
    Client,
}

/// Passes frames both ways until the process has ended or the client has gone. `exit` gives the exit
/// code; `signal` sends a signal; `output` gives what the process has written, and `None` at its end.
pub(super) async fn converse(
    conn: &mut Conn,
    mut output: impl AsyncFnMut() -> Option<Frame>,
    exit: impl Future<Output = i32>,
    input: &Input,
    signal: impl AsyncFn(i32),
) -> Ended {
    let (from, to) = conn.halves();
    let write = async {
        while let Some(frame) = output().await {
            if to.frame(&frame).await.is_err() {
                return Ended::Client;
            }
        }
        match to.frame(&Frame::exit(exit.await)).await {
            Ok(()) => Ended::Process,
            Err(_) => Ended::Client,
        }
    };
    let read = async {
        while let Ok(Some(frame)) = next_frame(from).await {
            match (frame.kind, frame.bytes.first()) {
                (FrameKind::Signal, Some(number)) => signal(i32::from(*number)).await,
                _ => input.take(&frame).await,
            }
        }
    };
    tokio::select! {
        ended = write => ended,
        () = read => Ended::Client,
    }
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
