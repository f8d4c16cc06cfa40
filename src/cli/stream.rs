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
use crate::sandbox::{FRAME_HEADER_LEN, Frame, FrameKind, Stdin, Terminal, WindowSize};

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

/// Joins this command with the program until that has ended. Returns its exit code.
pub(super) async fn join(
    connection: Connection,
    input: Stdin,
    terminal: Terminal,
) -> Result<i32, CliError> {
    let raw = (terminal == Terminal::Pty && terminal::is_there()).then(Raw::new).transpose()?;
    let (from, to) = split(connection);
    let sending = send(to, input, terminal);
    let outcome = tokio::select! {
        code = receive(from) => code,
        failed = sending => match failed {
            Err(error) => Err(error),
            Ok(never) => match never {},
        },
    };
    drop(raw);
    outcome
}

enum Never {}

/// Sends what is typed, and what happens to this command. Never ends by itself.
async fn send(
    mut to: WriteHalf<Connection>,
    input: Stdin,
    terminal: Terminal,
) -> Result<Never, CliError> {
    let mut keys = match input {
        Stdin::Open => Some(typed()),
        Stdin::Empty => None,
    };
    let mut resized = signal(SignalKind::window_change())?;
    // With a terminal, keys are sent as they are, and the program's own terminal makes signals of them.
    let mut signals = Signals::new()?;
    loop {
        let frame = tokio::select! {
            piece = next(&mut keys) => if let Some(bytes) = piece {
                Frame::new(FrameKind::Stdin, bytes)
            } else {
                keys = None;
                Frame::new(FrameKind::StdinEof, [])
            },
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
async fn receive(mut from: ReadHalf<Connection>) -> Result<i32, CliError> {
    loop {
        let frame = next_frame(&mut from).await?;
        match frame.kind {
            FrameKind::Stdout => show(&mut stdout().lock(), &frame.bytes)?,
            FrameKind::Stderr => show(&mut stderr().lock(), &frame.bytes)?,
            FrameKind::Exit => return Ok(frame.exit_code().unwrap_or(1)),
            FrameKind::Error => {
                let text = String::from_utf8_lossy(&frame.bytes).into_owned();
                return Err(DaemonError::Conversation(text).into());
            }
            _ => {}
        }
    }
}

/// The next frame that comes. Dropped before, a part of it may be lost.
pub(super) async fn next_frame(from: &mut (impl AsyncReadExt + Unpin)) -> Result<Frame, CliError> {
    let broken = |error: std::io::Error| DaemonError::Conversation(error.to_string());
    let mut header = [0; FRAME_HEADER_LEN];
    from.read_exact(&mut header).await.map_err(broken)?;
    let (kind, len) = Frame::parse_header(header).map_err(broken)?;
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).await.map_err(broken)?;
    Ok(Frame { kind, bytes })
}

fn show(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
