//! Connects this command's standard streams and signals to a program in a sandbox, over a framed
//! connection.

use std::io::{Read, stdin};
use std::thread;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use inlay_base::signals;
use inlay_sandbox::{
    FRAME_HEADER_LEN, Frame, FrameKind, Stdin, StreamPosition, Terminal, WindowSize,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

use super::error::CliError;
use super::printer::{Printer, Progress};
use super::terminal::{self, Raw};
use crate::daemon::{ClientError, Joined};

type StreamConnection = TokioIo<Upgraded>;

/// Size of one read from standard input, in bytes.
const READ_LEN: usize = 32 << 10;
/// Capacity of the queue from standard input to the connection.
const PIECES: usize = 8;
/// After a signal, how long output pipes or the connection may stall before this command exits.
const STILL_FOR: Duration = Duration::from_secs(2);
/// Number of signals that end this command even if the program ignores them, as with docker.
const SIGNALS_MAX: u32 = 3;

/// Returns the size of this terminal if the program has a pty.
pub(super) fn size(terminal: Terminal) -> Option<WindowSize> {
    let size = (terminal == Terminal::Pty).then(terminal::size).flatten()?;
    Some(WindowSize { rows: size.rows, columns: size.columns })
}

/// Outcome of a connection.
pub(super) enum ConnectionEnd {
    /// The program exited with this code.
    Ended(i32),
    /// The connection to the daemon broke, for this reason.
    Broken(String),
}

/// Standard streams of this command, attached to one program over successive connections.
pub(super) struct Ends {
    keys: Option<mpsc::Receiver<Vec<u8>>>,
    printer: Printer,
    terminal: Terminal,
    given: StdinGiven,
    shown: StreamPosition,
}

impl Drop for Ends {
    fn drop(&mut self) {
        // Restore the default actions: there is no program to forward signals to.
        signals::end_by(&SIGNALS.map(|kind| kind().as_raw_value()));
    }
}

/// Whether any standard input, including its end, was taken for the program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StdinGiven {
    Nothing,
    Something,
}

impl Ends {
    pub(super) fn new(input: Stdin, terminal: Terminal) -> Self {
        let keys = match input {
            Stdin::Open => Some(typed()),
            Stdin::Empty => None,
        };
        let (printer, shown) = (Printer::start(), StreamPosition::default());
        Self { keys, printer, terminal, given: StdinGiven::Nothing, shown }
    }

    pub(super) fn terminal(&self) -> Terminal {
        self.terminal
    }

    /// Returns how much output was received, so that the next connection resumes there.
    pub(super) fn position(&self) -> StreamPosition {
        self.shown
    }

    /// Whether another connection can resume: no input may have been lost in flight. At a terminal, lost
    /// input is acceptable: the user sees what arrived.
    pub(super) fn can_go_on(&self) -> bool {
        self.terminal == Terminal::Pty || self.given == StdinGiven::Nothing
    }

    /// Relays between this command and the program until the program exits or the connection breaks.
    pub(super) async fn join(&mut self, joined: Joined) -> Result<ConnectionEnd, CliError> {
        let raw = self.terminal == Terminal::Pty && terminal::is_there();
        let raw = raw.then(Raw::new).transpose()?;
        let (from, to) = split(joined.stream);
        let credit = Semaphore::new(joined.stdin_window.unwrap_or(Semaphore::MAX_PERMITS));
        let sender = Sender {
            to,
            unsent: Vec::new(),
            sent: 0,
            credit: &credit,
            terminal: self.terminal,
            interrupts: Interrupts::new(self.printer.progress()),
        };
        let outcome = tokio::select! {
            left = receive(from, &mut self.printer, &mut self.shown, &credit) => left,
            failed = sender.send(&mut self.keys, &mut self.given) => match failed {
                Err(error) => Err(error),
                Ok(never) => match never {},
            },
        };
        drop(raw);
        outcome
    }
}

enum Never {}

/// Sends standard input, signals and window size changes to the program.
struct Sender<'a> {
    to: WriteHalf<StreamConnection>,
    /// Encoded frames not yet written to the connection.
    unsent: Vec<u8>,
    /// Number of bytes written to the connection.
    sent: usize,
    /// Flow control credit for stdin, in bytes.
    credit: &'a Semaphore,
    terminal: Terminal,
    interrupts: Interrupts,
}

impl Sender<'_> {
    /// Runs until it fails or is dropped.
    async fn send(
        mut self,
        keys: &mut Option<mpsc::Receiver<Vec<u8>>>,
        given: &mut StdinGiven,
    ) -> Result<Never, CliError> {
        let mut resized = signal(SignalKind::window_change())?;
        // At a terminal in raw mode, Ctrl-C is input: the program's pty turns it into a signal.
        let mut signals = StreamSignals::new()?;
        // Stdin frame that waits for credit.
        let mut held: Option<Frame> = None;
        // Cleared when a write fails, e.g. after the program exited; the receiving side reports why.
        let mut taken = true;
        loop {
            let idle = taken && self.unsent.is_empty();
            let cost = held.as_ref().map_or(0, Frame::stdin_cost);
            tokio::select! {
                biased;
                number = signals.next() => {
                    self.interrupts.one_more(number, self.sent)?;
                    Frame::new(FrameKind::Signal, [number]).write_to(&mut self.unsent)?;
                }
                () = self.interrupts.due() => self.interrupts.check(self.sent, !self.unsent.is_empty())?,
                _ = resized.recv() => if let Some(size) = size(self.terminal) {
                    Frame::resize(size).write_to(&mut self.unsent)?;
                },
                sent = self.to.write(&self.unsent), if taken && !self.unsent.is_empty() => match sent {
                    Ok(len) if len > 0 => {
                        self.unsent.drain(..len);
                        self.sent += len;
                    }
                    _ => taken = false,
                },
                credit = self.credit.acquire_many(cost), if idle && held.is_some() => {
                    if let (Ok(credit), Some(frame)) = (credit, held.take()) {
                        credit.forget();
                        frame.write_to(&mut self.unsent)?;
                    }
                }
                piece = next(keys), if idle && held.is_none() => {
                    *given = StdinGiven::Something;
                    if let Some(bytes) = piece {
                        held = Some(Frame::new(FrameKind::Stdin, bytes));
                    } else {
                        *keys = None;
                        Frame::new(FrameKind::StdinEof, []).write_to(&mut self.unsent)?;
                    }
                }
            }
        }
    }
}

/// Decides when a signal ends this command, because the program ignores it or cannot receive it.
struct Interrupts {
    count: u32,
    last: u8,
    /// Time of the next progress check, if one is pending.
    look_at: Option<Instant>,
    progress: Progress,
    /// State at the last check: bytes written to the connection, and, if output is pending, the number
    /// of frames printed.
    before: (usize, Option<u64>),
}

impl Interrupts {
    fn new(progress: Progress) -> Self {
        Self { count: 0, last: 0, look_at: None, progress, before: (0, None) }
    }

    /// Records a signal. Returns an error, which ends this command, after [`SIGNALS_MAX`] signals.
    fn one_more(&mut self, number: u8, sent: usize) -> Result<(), CliError> {
        (self.count, self.last) = (self.count + 1, number);
        if self.count >= SIGNALS_MAX {
            return self.give_up();
        }
        if self.look_at.is_none() {
            self.look_at = Some(Instant::now() + STILL_FOR);
            self.before = (sent, self.progress.unfinished());
        }
        Ok(())
    }

    /// Waits until the next progress check is due; forever if none is pending.
    async fn due(&self) {
        match self.look_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Gives up if there was no progress since the last check: frames for the program remain unsent, or
    /// its output remains unwritten. Stops checking once both queues are drained: a later stall is
    /// unrelated to the signal.
    fn check(&mut self, sent: usize, more: bool) -> Result<(), CliError> {
        let now = (sent, self.progress.unfinished());
        let is_unsent = more && now.0 == self.before.0;
        if is_unsent || (now.1.is_some() && now.1 == self.before.1) {
            return self.give_up();
        }
        self.before = now;
        self.look_at = (more || now.1.is_some()).then(|| Instant::now() + STILL_FOR);
        Ok(())
    }

    fn give_up(&self) -> Result<(), CliError> {
        // Exit code as of a process killed by the signal.
        Err(CliError::Ended(self.last.saturating_add(128)))
    }
}

async fn next(keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads standard input on a thread. The thread lives until the end of the process: a read from a
/// terminal cannot be interrupted.
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

/// Signals forwarded to the program.
const SIGNALS: [fn() -> SignalKind; 4] =
    [SignalKind::interrupt, SignalKind::terminate, SignalKind::quit, SignalKind::hangup];

struct StreamSignals([Signal; 4]);

impl StreamSignals {
    fn new() -> Result<Self, CliError> {
        let [interrupt, terminate, quit, hangup] = SIGNALS.map(|kind| signal(kind()));
        Ok(Self([interrupt?, terminate?, quit?, hangup?]))
    }

    async fn next(&mut self) -> u8 {
        let [interrupt, terminate, quit, hangup] = &mut self.0;
        let kind = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
            _ = quit.recv() => SignalKind::quit(),
            _ = hangup.recv() => SignalKind::hangup(),
        };
        u8::try_from(kind.as_raw_value()).unwrap_or_default()
    }
}

/// Prints the program's output until it exits or the connection breaks.
async fn receive(
    mut from: ReadHalf<StreamConnection>,
    printer: &mut Printer,
    shown: &mut StreamPosition,
    credit: &Semaphore,
) -> Result<ConnectionEnd, CliError> {
    loop {
        let frame = match read_frame(&mut from).await {
            Ok(frame) => frame,
            Err(error) => {
                printer.flush().await?;
                return Ok(ConnectionEnd::Broken(error.to_string()));
            }
        };
        match frame.kind {
            FrameKind::Stdout | FrameKind::Stderr => {
                let len = u64::try_from(frame.bytes.len()).unwrap_or(u64::MAX);
                *shown.of(frame.kind) += len;
                printer.print(frame).await?;
            }
            FrameKind::Exit => {
                printer.flush().await?;
                return Ok(ConnectionEnd::Ended(frame.exit_code().unwrap_or(1)));
            }
            FrameKind::Error => {
                printer.flush().await?;
                let text = String::from_utf8_lossy(&frame.bytes).into_owned();
                return Err(ClientError::Conversation(text).into());
            }
            FrameKind::Taken => {
                let taken = usize::try_from(frame.taken_len().unwrap_or(0)).unwrap_or(0);
                credit.add_permits(taken);
            }
            _ => {}
        }
    }
}

/// Reads the next frame. Not cancel safe: a partially read frame is lost.
pub(super) async fn next_frame(from: &mut (impl AsyncReadExt + Unpin)) -> Result<Frame, CliError> {
    let read = read_frame(from).await;
    read.map_err(|error| ClientError::Conversation(error.to_string()).into())
}

async fn read_frame(from: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Frame> {
    let mut header = [0; FRAME_HEADER_LEN];
    from.read_exact(&mut header).await?;
    let (kind, len) = Frame::parse_header(header)?;
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).await?;
    Ok(Frame { kind, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_has_arrived_is_looked_after_no_more() {
        let mut interrupts = Interrupts::new(Progress::for_tests(0));
        interrupts.one_more(2, 0).unwrap();
        // Partially sent.
        interrupts.check(10, true).unwrap();
        assert!(interrupts.look_at.is_some());
        interrupts.check(20, false).unwrap();
        assert!(interrupts.look_at.is_none());
        // Checks resume with the next signal.
        interrupts.one_more(2, 20).unwrap();
        assert!(interrupts.check(20, true).is_err());
    }

    #[test]
    fn unread_output_ends_the_command_after_a_signal() {
        let mut interrupts = Interrupts::new(Progress::for_tests(1));
        interrupts.one_more(2, 0).unwrap();
        assert!(matches!(interrupts.check(20, false), Err(CliError::Ended(130))));
    }
}
