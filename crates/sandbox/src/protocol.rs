//! The protocol of the monitor's socket.
//!
//! The client sends one line of JSON ([`Request`]), and the monitor replies with one line
//! ([`Reply`]). After `exec` and `attach`, frames follow in both directions:
//! `u8 kind, u32 LE len, bytes`.

use std::io::{self, Read, Write};

use inlay_mounts::ProcessId;
use serde::{Deserialize, Serialize};

use super::error::Stuck;
use super::exit::Exit;
use super::options::{Stdin, Terminal};

/// The maximum payload of a frame, in bytes.
pub const FRAME_LEN_MAX: usize = 64 << 10;
/// The maximum length of a line, in bytes.
pub(super) const LINE_LEN_MAX: usize = 16 << 20;
/// The stdin window: how many bytes a client may have in flight.
pub(super) const STDIN_WINDOW: u32 = 256 << 10;
/// The minimum cost of a stdin frame in the window, in bytes.
const STDIN_COST_MIN: u32 = 64;
/// The length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 5;

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// To the process: bytes for its stdin.
    Stdin = 0,
    /// From the process: bytes of its stdout.
    Stdout = 1,
    /// From the process: bytes of its stderr.
    Stderr = 2,
    /// To the process: end of file on its stdin. Empty.
    StdinEof = 3,
    /// To the terminal: its new size. Two u16 LE: rows, columns.
    Resize = 4,
    /// To the process: a signal. One byte, its number.
    Signal = 5,
    /// From the monitor, last: how the process ended. An i32 LE, the exit code by shell convention.
    Exit = 6,
    /// From the monitor, last: an error message. UTF-8 text.
    Error = 7,
    /// From the monitor: credit for the stdin window, in bytes, where each stdin frame costs at
    /// least 64. A u32 LE. Sent only to clients that request [`StdinFlow::Windowed`].
    Taken = 8,
}

impl FrameKind {
    const ALL: [Self; 9] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::StdinEof,
        Self::Resize,
        Self::Signal,
        Self::Exit,
        Self::Error,
        Self::Taken,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: FrameKind,
    /// Its payload: at most [`FRAME_LEN_MAX`] bytes.
    pub bytes: Vec<u8>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WindowSize {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub columns: u16,
}

/// A position in the output of a first process: the number of bytes of each stream that a client
/// has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StreamPosition {
    /// Of stdout.
    pub stdout: u64,
    /// Of stderr.
    pub stderr: u64,
}

impl StreamPosition {
    /// Returns the count for frames of `kind`; all kinds but stderr count as stdout.
    pub fn of(&mut self, kind: FrameKind) -> &mut u64 {
        match kind {
            FrameKind::Stderr => &mut self.stderr,
            _ => &mut self.stdout,
        }
    }
}

impl Frame {
    /// Creates a frame.
    pub fn new(kind: FrameKind, bytes: impl Into<Vec<u8>>) -> Self {
        Self { kind, bytes: bytes.into() }
    }

    /// Creates a frame with the exit code of a process.
    pub fn exit(code: i32) -> Self {
        Self::new(FrameKind::Exit, code.to_le_bytes())
    }

    /// Creates a frame with a terminal's new size.
    pub fn resize(size: WindowSize) -> Self {
        let [[a, b], [c, d]] = [size.rows.to_le_bytes(), size.columns.to_le_bytes()];
        Self::new(FrameKind::Resize, [a, b, c, d])
    }

    /// Returns the window space, in bytes, that this stdin frame occupies until the process takes
    /// it.
    pub fn stdin_cost(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).max(STDIN_COST_MIN)
    }

    /// Creates a frame that returns `len` bytes to the window.
    pub(super) fn taken(len: u32) -> Self {
        Self::new(FrameKind::Taken, len.to_le_bytes())
    }

    /// Returns the window credit of a [`FrameKind::Taken`] frame, in bytes.
    pub fn taken_len(&self) -> Option<u32> {
        match (self.kind, <[u8; 4]>::try_from(self.bytes.as_slice())) {
            (FrameKind::Taken, Ok(bytes)) => Some(u32::from_le_bytes(bytes)),
            _ => None,
        }
    }

    /// Returns the exit code of a [`FrameKind::Exit`] frame.
    pub fn exit_code(&self) -> Option<i32> {
        match (self.kind, <[u8; 4]>::try_from(self.bytes.as_slice())) {
            (FrameKind::Exit, Ok(bytes)) => Some(i32::from_le_bytes(bytes)),
            _ => None,
        }
    }

    /// Returns the size in a [`FrameKind::Resize`] frame.
    pub fn window_size(&self) -> Option<WindowSize> {
        match (self.kind, <[u8; 4]>::try_from(self.bytes.as_slice())) {
            (FrameKind::Resize, Ok([a, b, c, d])) => Some(WindowSize {
                rows: u16::from_le_bytes([a, b]),
                columns: u16::from_le_bytes([c, d]),
            }),
            _ => None,
        }
    }

    /// Returns the header; fails if the payload is too long.
    pub(super) fn header(&self) -> io::Result<[u8; HEADER_LEN]> {
        if self.bytes.len() > FRAME_LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a frame is too long"));
        }
        let len = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        let [a, b, c, d] = len.to_le_bytes();
        Ok([self.kind as u8, a, b, c, d])
    }

    /// Parses a header into the type and the number of payload bytes that follow.
    pub fn parse_header(header: [u8; HEADER_LEN]) -> io::Result<(FrameKind, usize)> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let [kind, a, b, c, d] = header;
        let kind = FrameKind::of(kind).ok_or_else(|| invalid("a frame of an unknown kind"))?;
        let len = u32::from_le_bytes([a, b, c, d]);
        match usize::try_from(len) {
            Ok(len) if len <= FRAME_LEN_MAX => Ok((kind, len)),
            _ => Err(invalid("a frame is too long")),
        }
    }

    /// Writes header and payload with one call.
    pub fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        let mut all = Vec::with_capacity(HEADER_LEN + self.bytes.len());
        all.extend_from_slice(&self.header()?);
        all.extend_from_slice(&self.bytes);
        to.write_all(&all)
    }

    /// Reads a frame; `None` on a clean end of stream.
    pub fn read_from(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_LEN];
        let [first, rest @ ..] = &mut header;
        loop {
            match from.read(std::slice::from_mut(first)) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        from.read_exact(rest)?;
        let (kind, len) = Self::parse_header(header)?;
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes)?;
        Ok(Some(Self { kind, bytes }))
    }
}

/// The options of a process that runs beside a sandbox's first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecOptions {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables, `NAME=VALUE`, which override the sandbox's.
    #[serde(default)]
    pub env: Vec<String>,
    /// `NAME|UID[:GROUP|GID]`, overriding the sandbox's user.
    #[serde(default)]
    pub user: Option<String>,
    /// The working directory, overriding the sandbox's.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: Terminal,
    /// The terminal's size.
    #[serde(default)]
    pub size: Option<WindowSize>,
    /// Its stdin.
    #[serde(default)]
    pub stdin: Stdin,
    /// The destination of its output.
    #[serde(default)]
    pub output: Output,
}

/// The destination of a process's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// The client, as frames. If the connection closes before the process exits, the process gets
    /// SIGHUP, as on closing a terminal.
    #[default]
    Stream,
    /// Discarded; the process does not depend on the connection.
    Discard,
}

/// Flow control of stdin. Without it, unread input fills the connection and blocks signals behind
/// it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StdinFlow {
    /// None: the client sends as much as the connection accepts.
    #[default]
    Unbounded,
    /// The client keeps at most one window in flight; [`FrameKind::Taken`] returns credit as the
    /// process reads.
    Windowed,
}

/// A request to a monitor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Start,
    Exec {
        /// The OCI process object.
        process: serde_json::Value,
        stdin: Stdin,
        output: Output,
        #[serde(default)]
        flow: StdinFlow,
    },
    Attach {
        size: Option<WindowSize>,
        stdin: Stdin,
        /// `None`: output from now on.
        #[serde(default)]
        shown: Option<StreamPosition>,
        #[serde(default)]
        flow: StdinFlow,
    },
    /// Replied to once frozen. The freeze ends when the client sends anything or disconnects, or
    /// when the limit expires; then a second reply reports the outcome.
    Freeze {
        limit_ms: u64,
        /// How long to try; defaults to the limit.
        #[serde(default)]
        within_ms: Option<u64>,
    },
    Status,
    Signal {
        number: i32,
    },
    /// Replied to when the first process has exited.
    Wait,
}

/// A monitor's reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reply {
    Done,
    Started(Started),
    Frozen {
        micros: u64,
    },
    Thawed {
        frozen_micros: u64,
        held: bool,
    },
    Status(MonitorStatus),
    Exit(Exit),
    /// The request failed.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Failure {
    /// The sandbox is not running, or no longer.
    NotRunning,
    /// It has already started.
    Started,
    /// The program could not be executed.
    Exec { message: String, code: i32 },
    /// The freeze missed its deadline.
    NotFrozen {
        limit_ms: u64,
        #[serde(default)]
        stuck: Vec<Stuck>,
    },
    /// Any other failure.
    Other { message: String },
}

/// A started process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its identity on the host.
    pub process: ProcessId,
    /// The stdin window in bytes, if the monitor returns credit. Monitors of earlier versions do
    /// not.
    #[serde(default)]
    pub stdin_window: Option<u32>,
}

impl Started {
    pub(super) fn of(process: ProcessId, flow: StdinFlow) -> Self {
        let stdin_window = (flow == StdinFlow::Windowed).then_some(STDIN_WINDOW);
        Self { process, stdin_window }
    }
}

/// The state of a sandbox as its monitor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorStatus {
    /// The monitor itself.
    pub monitor: ProcessId,
    /// The first process, as a host pid. While it is alive, its namespaces can be entered.
    pub init: ProcessId,
    /// Whether it was started.
    pub started: bool,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
    /// The number of processes running through `exec`.
    pub execs: usize,
    /// Whether the sandbox is frozen.
    pub frozen: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_written(
            frames in prop::collection::vec((0u8..9, prop::collection::vec(any::<u8>(), 0..300)), 0..8)
        ) {
            let frames: Vec<Frame> = frames
                .into_iter()
                .map(|(kind, bytes)| Frame { kind: FrameKind::of(kind).unwrap(), bytes })
                .collect();
            let mut wire = Vec::new();
            for frame in &frames {
                frame.write_to(&mut wire).unwrap();
            }
            let mut from = wire.as_slice();
            for frame in &frames {
                let read = Frame::read_from(&mut from).unwrap();
                prop_assert_eq!(read.as_ref(), Some(frame));
            }
            prop_assert_eq!(Frame::read_from(&mut from).unwrap(), None);
        }

        #[test]
        fn arbitrary_bytes_decode_to_a_frame_or_an_error(wire in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut from = wire.as_slice();
            while let Ok(Some(frame)) = Frame::read_from(&mut from) {
                prop_assert!(frame.bytes.len() <= FRAME_LEN_MAX);
            }
        }
    }

    #[test]
    fn no_frame_is_longer_than_the_limit() {
        let long = Frame::new(FrameKind::Stdin, vec![0; FRAME_LEN_MAX + 1]);
        assert!(long.write_to(&mut Vec::new()).is_err());
        let header = [0, 1, 0, 1, 0];
        assert!(Frame::read_from(&mut header.as_slice()).is_err());
    }

    #[test]
    fn sizes_and_codes_survive() {
        let size = WindowSize { rows: 24, columns: 300 };
        assert_eq!(Frame::resize(size).window_size(), Some(size));
        assert_eq!(Frame::exit(-1).exit_code(), Some(-1));
        assert_eq!(Frame::exit(1).window_size(), None);
    }
}
