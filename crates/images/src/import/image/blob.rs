//! Parses digests and verifies blobs against them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256, Sha512};

use super::ImageError;
use crate::import::Layer;

/// Digest of a blob. Its digits are validated as hexadecimal, so that it is safe in a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::import) struct BlobDigest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl BlobDigest {
    /// Path of the blob in an image layout.
    pub(in crate::import) fn path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }

    #[cfg(test)]
    pub(in crate::import) fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for BlobDigest {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let wrong = || ImageError::Digest(text.chars().take(200).collect());
        let (name, hex) = text.split_once(':').ok_or_else(wrong)?;
        let (algorithm, len) = match name {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(wrong()),
        };
        let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != len || !hex.bytes().all(digit) {
            return Err(wrong());
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Hashes a blob and counts its bytes as they stream through.
#[derive(Debug, Clone)]
pub(in crate::import) struct BlobHasher {
    digest: BlobDigest,
    size: u64,
    len: u64,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl BlobHasher {
    /// Expects a blob of `size` bytes with `digest`.
    pub(in crate::import) fn new(digest: BlobDigest, size: u64) -> Self {
        let state = match digest.algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        };
        Self { digest, size, len: 0, state }
    }

    /// Adds bytes. Fails once they exceed the expected size.
    pub(in crate::import) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        if self.len > self.size {
            return Err(wrong(format!("it has more than the {} bytes it should have", self.size)));
        }
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
        Ok(())
    }

    /// Checks that the blob is complete and matches its digest.
    pub(in crate::import) fn check(&self) -> io::Result<()> {
        if self.len != self.size {
            return Err(wrong(format!("it ends after {} of {} bytes", self.len, self.size)));
        }
        let found = match self.state.clone() {
            State::Sha256(state) => hex::encode(state.finalize()),
            State::Sha512(state) => hex::encode(state.finalize()),
        };
        if found != self.digest.hex {
            return Err(wrong(format!("its bytes are not those of its digest but of {found}")));
        }
        Ok(())
    }
}

fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads a blob, and returns an error instead of the end if it does not match its digest.
pub(in crate::import) struct VerifiedReader<R> {
    source: R,
    hasher: BlobHasher,
}

impl<R: Read> VerifiedReader<R> {
    pub(in crate::import) fn new(source: R, digest: BlobDigest, size: u64) -> Self {
        Self { source, hasher: BlobHasher::new(digest, size) }
    }
}

impl<R: Read> Read for VerifiedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.source.read(buf)?;
        if len == 0 && !buf.is_empty() {
            self.hasher.check()?;
        }
        self.hasher.update(buf.get(..len).unwrap_or(&[]))?;
        Ok(len)
    }
}

/// Opens a regular file; fails on any other type, which could block or be endless.
pub(in crate::import) fn open_file(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(wrong("it is no regular file".to_owned()));
    }
    Ok(file)
}

/// Reads all of `source`, which must not exceed `limit` bytes; `what` names it in messages.
pub(in crate::import) fn read_bounded(
    source: &mut dyn Read,
    limit: u64,
    what: &str,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    source
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ImageError::Blob { blob: what.to_owned(), source })?;
    let found = bytes.len() as u64;
    if found > limit {
        return Err(ImageError::TooLarge { what: what.to_owned(), found, of: "bytes", limit });
    }
    Ok(bytes)
}

/// A layer stored in a file or a part of one, with its digest if known.
#[derive(Debug)]
pub(in crate::import) struct VerifiedLayer {
    pub(in crate::import) path: PathBuf,
    /// Offset in the file, in bytes.
    pub(in crate::import) offset: u64,
    /// Size in bytes.
    pub(in crate::import) size: u64,
    pub(in crate::import) digest: Option<BlobDigest>,
    /// Name for messages.
    pub(in crate::import) name: String,
}

impl Layer for VerifiedLayer {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + Send>> {
        let mut file = open_file(&self.path)?;
        // Read one byte past the expected size to detect a blob that is too long.
        let limit = match &self.digest {
            Some(_) if self.offset == 0 => self.size.saturating_add(1),
            _ => self.size,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let bytes = file.take(limit);
        Ok(match &self.digest {
            Some(digest) => Box::new(VerifiedReader::new(bytes, digest.clone(), self.size)),
            None => Box::new(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(bytes: &[u8]) -> BlobDigest {
        format!("sha256:{}", hex::encode(Sha256::digest(bytes))).parse().unwrap()
    }

    #[test]
    fn a_digest_that_could_leave_its_directory_is_none() {
        let hex = "a".repeat(64);
        let good: BlobDigest = format!("sha256:{hex}").parse().unwrap();
        assert_eq!(good.path(), format!("blobs/sha256/{hex}"));
        assert!(format!("sha512:{hex}{hex}").parse::<BlobDigest>().is_ok());
        for text in [
            "sha256:../../../../etc/passwd",
            "sha256:",
            &format!("sha256:{}", "A".repeat(64)),
            &format!("md5:{hex}"),
            &format!("../sha256:{hex}"),
            &format!("sha512:{hex}"),
            &format!("sha256:{}/x", "a".repeat(62)),
            &hex,
        ] {
            assert!(text.parse::<BlobDigest>().is_err(), "{text}");
        }
    }

    #[test]
    fn other_bytes_fewer_and_more_are_refused_at_the_end() {
        let right = b"what was promised";
        let read = |bytes: &'static [u8]| {
            let mut reader = VerifiedReader::new(bytes, digest_of(right), right.len() as u64);
            io::copy(&mut reader, &mut io::sink())
        };
        assert_eq!(read(right).unwrap(), right.len() as u64);
        for bytes in [b"what was promiseD".as_slice(), b"what was", b"what was promised ", b""] {
            assert_eq!(read(bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
