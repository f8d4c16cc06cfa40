//! Defines a layer: a tar archive that can be read from the start more than once.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::{Buf, Bytes};

/// A tar archive, plain or compressed with gzip or zstd. It can be reopened, because the flattener
/// may need a second pass for files it first took for hidden.
pub trait Layer {
    /// Name for messages: a digest or a path.
    fn name(&self) -> String;

    /// Opens the stored bytes from the start. The flattener reads to the end, so a reader may
    /// verify a digest there and return an error instead of the end.
    fn open(&mut self) -> io::Result<Box<dyn Read + Send>>;
}

/// A layer in a file.
#[derive(Debug, Clone)]
pub struct FileLayer {
    path: PathBuf,
}

impl FileLayer {
    /// Uses the archive at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Layer for FileLayer {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(&self.path)?))
    }
}

/// A layer in memory.
#[derive(Debug, Clone)]
pub struct BytesLayer {
    name: String,
    bytes: Bytes,
}

impl BytesLayer {
    /// Uses the archive in `bytes`, called `name` in messages.
    pub fn new(name: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl Layer for BytesLayer {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.bytes.clone().reader()))
    }
}

/// An archive on standard input. It can be opened only once, which suffices for a single layer.
#[derive(Debug, Default)]
pub struct StdinLayer {
    opened: bool,
}

impl Layer for StdinLayer {
    fn name(&self) -> String {
        "standard input".into()
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + Send>> {
        if std::mem::replace(&mut self.opened, true) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it can't be read twice"));
        }
        Ok(Box::new(io::stdin()))
    }
}
