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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use super::*;

    fn written(writes: &[Vec<u8>]) -> Vec<Bytes> {
        // Room for a piece per write: nothing reads before the end.
        let (sender, mut pieces) = mpsc::channel(writes.len() + 1);
        let mut writer = PieceWriter::new(sender);
        for bytes in writes {
            writer.write_all(bytes).unwrap();
            writer.flush().unwrap();
        }
        writer.finish().unwrap();
        std::iter::from_fn(|| pieces.blocking_recv()).map(Result::unwrap).collect()
    }

    #[test]
    fn small_writes_are_joined_into_pieces_and_the_rest_is_sent_at_the_end() {
        let writes: Vec<_> =
            (0..1000_u32).map(|i| vec![u8::try_from(i % 251).unwrap(); 1000]).collect();
        let pieces = written(&writes);
        assert_eq!(pieces.concat(), writes.concat());
        let (last, full) = pieces.split_last().unwrap();
        assert!(full.iter().all(|piece| (131_072..132_072).contains(&piece.len())));
        assert!(
            full.len() == 7 && last.len() < 131_072,
            "{} full, {} left",
            full.len(),
            last.len()
        );
    }

    #[test]
    fn a_stream_arrives_whole_however_it_is_cut() {
        let (sender, pieces) = mpsc::channel(PIECES);
        let bytes: Vec<u8> = (0..1_000_003_u32).map(|i| (i % 253) as u8).collect();
        let expected = bytes.clone();
        let writing = thread::spawn(move || {
            let mut writer = PieceWriter::new(sender);
            bytes.chunks(70_001).for_each(|part| writer.write_all(part).unwrap());
            writer.finish().unwrap();
        });
        let (mut reader, mut read, mut buffer) =
            (PieceReader::new(pieces), Vec::new(), vec![0; 30_011]);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                len => read.extend_from_slice(buffer.get(..len).unwrap()),
            }
        }
        writing.join().unwrap();
        assert!(read == expected);
    }

    #[test]
    fn an_error_ends_a_stream_and_a_closed_channel_fails_a_write() {
        let (sender, pieces) = mpsc::channel(PIECES);
        sender.blocking_send(Ok(Bytes::from_static(b"ab"))).unwrap();
        sender.blocking_send(Err(io::ErrorKind::TimedOut.into())).unwrap();
        let mut reader = PieceReader::new(pieces);
        let mut read = Vec::new();
        let error = reader.read_to_end(&mut read).unwrap_err();
        assert_eq!((read.as_slice(), error.kind()), (b"ab".as_slice(), io::ErrorKind::TimedOut));
        drop(reader);
        let mut writer = PieceWriter::new(sender);
        writer.write_all(b"fits into no full piece").unwrap();
        assert_eq!(writer.finish().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
