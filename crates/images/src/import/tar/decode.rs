//! Decompresses a layer: none, gzip or zstd, detected from the first bytes.
//!
//! Trailing bytes after the last gzip member or zstd frame are padding or garbage. They are read,
//! so that a digest over the whole layer can be verified, and discarded.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;

use super::peek::Peek;

type ZstdDecoder = zstd::stream::read::Decoder<'static, Peek>;

/// Decompressed bytes of a layer. Reports the end only after the stored bytes have ended.
pub(super) enum Decoder {
    Plain(Peek),
    Gzip(Box<GzDecoder<Peek>>),
    Zstd(Box<ZstdDecoder>),
    /// After the last member or frame.
    Rest(Peek),
    /// Between two states, and after an error.
    Broken,
}

/// Compression detected from the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
    Other(&'static str),
}

impl Compression {
    const MARK_LEN: usize = 6;

    fn of(mark: &[u8]) -> Self {
        match mark {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame, which other tools use for metadata.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Other("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Other("xz"),
            [b'L', b'Z', b'I', b'P', ..] => Self::Other("lzip"),
            _ => Self::None,
        }
    }
}

impl Decoder {
    pub(super) fn new(stored: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut stored = Peek::new(stored);
        match Compression::of(stored.peek(Compression::MARK_LEN)?) {
            Compression::None => Ok(Self::Plain(stored)),
            Compression::Gzip => Ok(Self::gzip(stored)),
            Compression::Zstd => Self::zstd(stored),
            Compression::Other(name) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{name} is not supported; give it plain, or with gzip or zstd"),
            )),
        }
    }

    fn gzip(stored: Peek) -> Self {
        Self::Gzip(Box::new(GzDecoder::new(stored)))
    }

    fn zstd(stored: Peek) -> io::Result<Self> {
        // The library limits windows to 128 MiB.
        Ok(Self::Zstd(Box::new(ZstdDecoder::with_buffer(stored)?.single_frame())))
    }

    fn next_part(&mut self) -> io::Result<()> {
        let (mut stored, was) = match std::mem::replace(self, Self::Broken) {
            Self::Gzip(decoder) => (decoder.into_inner(), Compression::Gzip),
            Self::Zstd(decoder) => (decoder.finish(), Compression::Zstd),
            other => {
                *self = other;
                return Ok(());
            }
        };
        *self = if Compression::of(stored.peek(Compression::MARK_LEN)?) == was {
            match was {
                Compression::Gzip => Self::gzip(stored),
                _ => Self::zstd(stored)?,
            }
        } else {
            Self::Rest(stored)
        };
        Ok(())
    }
}

impl Read for Decoder {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let len = match self {
                Self::Plain(stored) => return stored.read(out),
                Self::Rest(stored) => {
                    io::copy(stored, &mut io::sink())?;
                    return Ok(0);
                }
                Self::Broken => return Ok(0),
                Self::Gzip(decoder) => decoder.read(out)?,
                Self::Zstd(decoder) => decoder.read(out)?,
            };
            if len > 0 {
                return Ok(len);
            }
            self.next_part()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Returns one byte at a time, like a slow pipe.
    struct Drip(io::Cursor<Vec<u8>>);

    impl Read for Drip {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let len = out.len().min(1);
            self.0.read(&mut out[..len])
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(stored: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut decoder = Decoder::new(Box::new(Drip(io::Cursor::new(stored))))?;
        decoder.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_and_frames_follow_each_other_and_garbage_ends_them() {
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3].to_vec();
        for stored in [
            b"hello world".to_vec(),
            [gzip(b"hello "), gzip(b""), gzip(b"world")].concat(),
            [gzip(b"hello world"), vec![0; 700]].concat(),
            [skippable.clone(), frame(b"hello "), skippable, frame(b"world"), vec![7; 9]].concat(),
        ] {
            assert_eq!(decode(stored).unwrap(), b"hello world");
        }
        assert_eq!(decode(Vec::new()).unwrap(), b"");
    }

    #[test]
    fn cut_and_damaged_streams_are_errors() {
        let whole = gzip(&[b'x'; 1000]);
        for len in 2..whole.len() {
            assert!(decode(whole[..len].to_vec()).is_err(), "{len}");
        }
        let mut damaged = whole;
        let sum = damaged.len() - 8;
        damaged[sum] ^= 1;
        assert!(decode(damaged).is_err());
        let whole = zstd::encode_all(&[b'x'; 1000][..], 1).unwrap();
        for len in 4..whole.len() {
            assert!(decode(whole[..len].to_vec()).is_err(), "{len}");
        }
        let message = decode(b"\xfd7zXZ\0".to_vec()).unwrap_err().to_string();
        assert!(message.contains("xz is not supported"), "{message}");
    }
}
