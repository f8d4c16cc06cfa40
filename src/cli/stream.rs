//! This command's terminal and a program in a sandbox, joined by a stream of frames.

use std::io::{Read, Write, stderr, stdin, stdout};
use std::thread;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::error::CliError;
use super::terminal::{self, Raw};
use crate::daemon::DaemonError;
use crate::sandbox::{FRAME_HEADER_LEN, Frame, FrameKind, Shown, Stdin, Terminal, WindowSize};

type Connection = TokioIo<Upgraded>;

/// What is read of the keyboard, or of a file, at a time.
const READ_LEN: usize = 32 << 10;
/// How many pieces wait to be sent.
const PIECES: usize = 8;

/// The size of this terminal, if a program gets one.
pub(super) fn size(terminal: Terminal) -> Option<WindowSize> {
    let size = (terminal == Terminal::Pty).then(terminal::size).flatten()?;
    Some(WindowSize { rows: size.rows, columns: size.columns })
}

/// How a connection ended.
pub(super) enum Left {
    /// The program has ended with this exit code.
    Ended(i32),
    /// The daemon has gone: why it is thought so.
    Broken(String),
}

/// This command's input and output, for one program, over one connection after another.
pub(super) struct Ends {
    keys: Option<mpsc::Receiver<Vec<u8>>>,
    terminal: Terminal,
    given: Given,
    shown: Shown,
}

/// Whether the program was given anything to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    Nothing,
    Something,
}

impl Ends {
    pub(super) fn new(input: Stdin, terminal: Terminal) -> Self {
        let keys = match input {
            Stdin::Open => Some(typed()),
            Stdin::Empty => None,
        };
        Self { keys, terminal, given: Given::Nothing, shown: Shown::default() }
    }

    pub(super) fn terminal(&self) -> Terminal {
        self.terminal
    }

    /// What the program has printed here.
    pub(super) fn shown(&self) -> Shown {
        self.shown
    }

    /// Whether another connection can go on where one broke: nothing that the program reads was lost on
    /// the way. Who types at a terminal sees what has arrived.
    pub(super) fn can_go_on(&self) -> bool {
        self.terminal == Terminal::Pty || self.given == Given::Nothing
    }

    /// Joins this command with the program until that has ended or the connection is broken.
    pub(super) async fn join(&mut self, connection: Connection) -> Result<Left, CliError> {
        let raw = self.terminal == Terminal::Pty && terminal::is_there();
        let raw = raw.then(Raw::new).transpose()?;
        let (from, to) = split(connection);
        let sending = send(to, &mut self.keys, self.terminal, &mut self.given);
        let outcome = tokio::select! {
            left = receive(from, &mut self.shown) => left,
            failed = sending => match failed {
                Err(error) => Err(error),
                Ok(never) => match never {},
            },
        };
        drop(raw);
        outcome
    }
}

enum Never {}

/// Sends what is typed, and what happens to this command. Never ends by itself.
async fn send(
    mut to: WriteHalf<Connection>,
    keys: &mut Option<mpsc::Receiver<Vec<u8>>>,
    terminal: Terminal,
    given: &mut Given,
) -> Result<Never, CliError> {
    let mut resized = signal(SignalKind::window_change())?;
    // With a terminal, keys are sent as they are, and the program's own terminal makes signals of them.
    let mut signals = Signals::new()?;
    loop {
        let frame = tokio::select! {
            piece = next(keys) => {
                *given = Given::Something;
                if let Some(bytes) = piece {
                    Frame::new(FrameKind::Stdin, bytes)
                } else {
                    *keys = None;
                    Frame::new(FrameKind::StdinEof, [])
                }
            }
            _ = resized.recv() => match size(terminal) {
                Some(size) => Frame::resize(size),
                None => continue,
            },
            number = signals.next() => Frame::new(FrameKind::Signal, [number]),
        };
        let mut bytes = Vec::new();
        frame.write_to(&mut bytes)?;
        // A program that has ended does not take it any more: then the other direction says so.
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn next(keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// What comes from standard input. The thread ends with this process: nothing interrupts a read from a
/// terminal.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    thread::spawn(move || {
        let mut buffer = vec![0; READ_LEN];
        while let Ok(len) = stdin().lock().read(&mut buffer) {
            let piece = buffer.get(..len).unwrap_or_default().to_vec();
            if piece.is_empty() || sender.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Signals to this command that are meant for the program.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        u8::try_from(kind.as_raw_value()).unwrap_or_default()
    }
}

/// Shows what the program prints until it has ended.
async fn receive(mut from: ReadHalf<Connection>, shown: &mut Shown) -> Result<Left, CliError> {
    loop {
        let frame = match read_frame(&mut from).await {
            Ok(frame) => frame,
            Err(error) => return Ok(Left::Broken(error.to_string())),
        };
        match frame.kind {
            FrameKind::Stdout => show(&mut stdout().lock(), &frame.bytes)?,
            FrameKind::Stderr => show(&mut stderr().lock(), &frame.bytes)?,
            FrameKind::Exit => return Ok(Left::Ended(frame.exit_code().unwrap_or(1))),
            FrameKind::Error => {
                let text = String::from_utf8_lossy(&frame.bytes).into_owned();
                return Err(DaemonError::Conversation(text).into());
            }
            _ => continue,
        }
        *shown.of(frame.kind) += u64::try_from(frame.bytes.len()).unwrap_or(u64::MAX);
    }
}

/// The next frame that comes. Dropped before, a part of it may be lost.
pub(super) async fn next_frame(from: &mut (impl AsyncReadExt + Unpin)) -> Result<Frame, CliError> {
    let read = read_frame(from).await;
    read.map_err(|error| DaemonError::Conversation(error.to_string()).into())
}

async fn read_frame(from: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Frame> {
    let mut header = [0; FRAME_HEADER_LEN];
    from.read_exact(&mut header).await?;
    let (kind, len) = Frame::parse_header(header)?;
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).await?;
    Ok(Frame { kind, bytes })
}

fn show(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
