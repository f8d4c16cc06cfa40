//! A client's connection to a monitor.

use std::io;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::super::protocol::{Frame, LINE_LEN_MAX, Request};

/// The timeout for a client to send its request or to receive a line.
const LINE_WITHIN: Duration = Duration::from_secs(10);

/// The half that reads from a client.
pub(super) type ReadHalf = BufReader<OwnedReadHalf>;

/// The half that writes to a client.
#[derive(Debug)]
pub(super) struct WriteHalf(OwnedWriteHalf);

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    from: ReadHalf,
    to: WriteHalf,
}

impl Conn {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (from, to) = stream.into_split();
        Self { from: BufReader::new(from), to: WriteHalf(to) }
    }

    /// Reads the client's request; `None` if it has disconnected.
    pub(super) async fn request(&mut self) -> io::Result<Option<Request>> {
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_LEN_MAX).unwrap_or(u64::MAX);
        let mut from = (&mut self.from).take(limit);
        let read = timeout(LINE_WITHIN, from.read_until(b'\n', &mut line));
        read.await.map_err(|_| io::ErrorKind::TimedOut)??;
        if line.is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&line)?))
    }

    /// Sends one line of JSON.
    pub(super) async fn reply(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        let written = timeout(LINE_WITHIN, self.to.0.write_all(&line));
        written.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Waits until the client sends anything or disconnects.
    pub(super) async fn anything(&mut self) {
        self.from.fill_buf().await.ok();
    }

    pub(super) fn halves(&mut self) -> (&mut ReadHalf, &mut WriteHalf) {
        (&mut self.from, &mut self.to)
    }
}

impl WriteHalf {
    /// Sends a frame.
    pub(super) async fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        let mut all = frame.header()?.to_vec();
        all.extend_from_slice(&frame.bytes);
        self.0.write_all(&all).await
    }
}
