//! Passes an archive through a channel in pieces.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// The capacity of the channel, in pieces.
pub const PIECES: usize = 4;
/// The approximate size of a piece, in bytes.
const PIECE_LEN: usize = 128 << 10;

/// A piece, or the error that ends the stream.
pub type Piece = io::Result<Bytes>;

/// Writes into a channel. Blocks while the channel is full.
#[derive(Debug)]
pub struct PieceWriter {
    sender: mpsc::Sender<Piece>,
    bytes: Vec<u8>,
}

impl PieceWriter {
    /// Creates a writer into `sender`.
    pub fn new(sender: mpsc::Sender<Piece>) -> Self {
        Self { sender, bytes: Vec::new() }
    }

    /// Sends the rest.
    pub fn finish(mut self) -> io::Result<()> {
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.bytes);
        let sent = self.sender.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= PIECE_LEN {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads from a channel. Blocks until a piece arrives.
#[derive(Debug)]
pub struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
}

impl PieceReader {
    /// Creates a reader from `pieces`.
    pub fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, piece: Bytes::new() }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(buffer.get_mut(..len).unwrap_or_default());
        Ok(len)
    }
}
