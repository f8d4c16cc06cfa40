//! What is said on a monitor's socket.
//!
//! First one line of JSON that says what is wanted ([`Request`]), then one line that answers it
//! ([`Reply`]). After `exec` and `attach`, frames follow both ways: `u8 kind, u32 LE len, bytes`.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::exit::Exit;
use super::options::{Stdin, Terminal};
use crate::mount::ProcessId;

/// The longest frame, in bytes.
pub const FRAME_LEN_MAX: usize = 64 << 10;
/// The longest line, in bytes.
pub(super) const LINE_LEN_MAX: usize = 1 << 20;
/// The length of what comes before a frame's bytes.
pub const HEADER_LEN: usize = 5;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// To the process: bytes that it reads.
    Stdin = 0,
    /// From the process: what it prints.
    Stdout = 1,
    /// From the process: what it says besides.
    Stderr = 2,
    /// To the process: the end of what it reads. Empty.
    StdinEof = 3,
    /// To the terminal: its size. Two u16 LE: rows, columns.
    Resize = 4,
    /// To the process: a signal. One byte, its number.
    Signal = 5,
    /// From the monitor, last: how the process ended. An i32 LE, the exit code as shells have it.
    Exit = 6,
    /// From the monitor, last: what went wrong. Text.
    Error = 7,
}

impl FrameKind {
    const ALL: [Self; 8] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::StdinEof,
        Self::Resize,
        Self::Signal,
        Self::Exit,
        Self::Error,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// What it holds: at most [`FRAME_LEN_MAX`] bytes.
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

/// How many bytes of a first process's output somebody has seen, of all that it has printed to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Shown {
    /// Of what it prints.
    pub stdout: u64,
    /// Of what it says besides.
    pub stderr: u64,
}

impl Shown {
    /// That of frames of this kind; all that is not said besides counts as printed.
    pub(crate) fn of(&mut self, kind: FrameKind) -> &mut u64 {
        match kind {
            FrameKind::Stderr => &mut self.stderr,
            _ => &mut self.stdout,
        }
    }
}

impl Frame {
    /// With some bytes.
    pub fn new(kind: FrameKind, bytes: impl Into<Vec<u8>>) -> Self {
        Self { kind, bytes: bytes.into() }
    }

    /// How a process ended.
    pub fn exit(code: i32) -> Self {
        Self::new(FrameKind::Exit, code.to_le_bytes())
    }

    /// A terminal's new size.
    pub fn resize(size: WindowSize) -> Self {
        let [[a, b], [c, d]] = [size.rows.to_le_bytes(), size.columns.to_le_bytes()];
        Self::new(FrameKind::Resize, [a, b, c, d])
    }

    /// The exit code in a frame that has one.
    pub fn exit_code(&self) -> Option<i32> {
        match (self.kind, <[u8; 4]>::try_from(self.bytes.as_slice())) {
            (FrameKind::Exit, Ok(bytes)) => Some(i32::from_le_bytes(bytes)),
            _ => None,
        }
    }

    /// The size in a frame that has one.
    pub fn window_size(&self) -> Option<WindowSize> {
        match (self.kind, <[u8; 4]>::try_from(self.bytes.as_slice())) {
            (FrameKind::Resize, Ok([a, b, c, d])) => Some(WindowSize {
                rows: u16::from_le_bytes([a, b]),
                columns: u16::from_le_bytes([c, d]),
            }),
            _ => None,
        }
    }

    /// What comes before the bytes.
    pub(super) fn header(&self) -> io::Result<[u8; HEADER_LEN]> {
        if self.bytes.len() > FRAME_LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a frame is too long"));
        }
        let len = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        let [a, b, c, d] = len.to_le_bytes();
        Ok([self.kind as u8, a, b, c, d])
    }

    /// What a header says: the kind, and how many bytes follow.
    pub(crate) fn parse_header(header: [u8; HEADER_LEN]) -> io::Result<(FrameKind, usize)> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let [kind, a, b, c, d] = header;
        let kind = FrameKind::of(kind).ok_or_else(|| invalid("a frame of an unknown kind"))?;
        let len = u32::from_le_bytes([a, b, c, d]);
        match usize::try_from(len) {
            Ok(len) if len <= FRAME_LEN_MAX => Ok((kind, len)),
            _ => Err(invalid("a frame is too long")),
        }
    }

    /// Writes it.
    pub fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        let mut all = Vec::with_capacity(HEADER_LEN + self.bytes.len());
        all.extend_from_slice(&self.header()?);
        all.extend_from_slice(&self.bytes);
        to.write_all(&all)
    }

    /// Reads one; `None` at the end.
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

/// What runs beside the first process of a sandbox, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecOptions {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables, `NAME=VALUE`, which win over the sandbox's.
    #[serde(default)]
    pub env: Vec<String>,
    /// `NAME|UID[:GROUP|GID]` instead of the sandbox's.
    #[serde(default)]
    pub user: Option<String>,
    /// The working directory instead of the sandbox's.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: Terminal,
    /// The terminal's size.
    #[serde(default)]
    pub size: Option<WindowSize>,
    /// What it reads.
    #[serde(default)]
    pub stdin: Stdin,
    /// Whether anybody is there for what it prints.
    #[serde(default)]
    pub output: Output,
}

/// Whether anybody is there for what a process prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// Frames follow. When the connection ends before the process does, it gets SIGHUP, as when a
    /// terminal is closed.
    #[default]
    Stream,
    /// It goes nowhere; the process is on its own.
    Discard,
}

/// What is asked of a monitor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Start,
    Exec {
        /// The process as the runtime specification has it.
        process: serde_json::Value,
        stdin: Stdin,
        output: Output,
    },
    Attach {
        size: Option<WindowSize>,
        stdin: Stdin,
        /// `None`: what is printed from now on is wanted.
        #[serde(default)]
        shown: Option<Shown>,
    },
    /// Answered when frozen. Ends when anything is sent or the connection ends, or after the limit;
    /// then a second answer says how it was.
    Freeze {
        limit_ms: u64,
    },
    Status,
    Signal {
        number: i32,
    },
    /// Answered when the first process has ended.
    Wait,
}

/// What a monitor answers.
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
    /// It was not done.
    Failed(Failure),
}

/// Why something was not done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Failure {
    /// The sandbox does not run, or no more.
    NotRunning,
    /// It runs already.
    Started,
    /// The program could not be run.
    Exec { message: String, code: i32 },
    /// The freezing took too long.
    NotFrozen { limit_ms: u64 },
    /// Anything else.
    Other { message: String },
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// As the host sees it.
    pub process: ProcessId,
}

/// How a sandbox is, as its monitor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorStatus {
    /// The monitor itself.
    pub monitor: ProcessId,
    /// The first process, as the host sees it. While it lives, its namespaces can be entered.
    pub init: ProcessId,
    /// Whether it was started.
    pub started: bool,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
    /// How many processes run beside the first by `exec`.
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
            frames in prop::collection::vec((0u8..8, prop::collection::vec(any::<u8>(), 0..300)), 0..8)
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
        fn whatever_comes_is_a_frame_or_an_error(wire in prop::collection::vec(any::<u8>(), 0..64)) {
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
