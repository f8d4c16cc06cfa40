//! Reads the log: the last entries, those since a moment, and what comes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use super::super::client;
use super::super::error::SandboxError;
use super::super::layout::Layout;
use super::{ENTRY_MAX, LogEntry, LogLimits, path};

/// How soon a reader that follows looks again.
const PAUSE: Duration = Duration::from_millis(50);

/// Which part of the log is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogFrom {
    /// Only so many of the last entries that are there now.
    pub tail: Option<usize>,
    /// Only what was written at this moment or later, in nanoseconds since 1970.
    pub since_ns: u64,
}

/// A reader of a sandbox's log. It holds one entry at a time.
#[derive(Debug)]
pub struct LogReader {
    layout: Layout,
    since_ns: u64,
    /// Entries that are still to be left out.
    skip: usize,
    file: Option<BufReader<File>>,
    /// Older files that come first.
    older: Vec<BufReader<File>>,
    /// A line whose end was not there yet.
    partial: Vec<u8>,
}

impl LogReader {
    /// Begins to read. There may be no log yet.
    pub fn open(layout: &Layout, from: LogFrom) -> Result<Self, SandboxError> {
        let mut reader = Self::begin(layout, from.since_ns)?;
        if let Some(tail) = from.tail {
            let mut count = 0usize;
            while reader.entry()?.is_some() {
                count += 1;
            }
            reader = Self::begin(layout, from.since_ns)?;
            reader.skip = count.saturating_sub(tail);
        }
        Ok(reader)
    }

    fn begin(layout: &Layout, since_ns: u64) -> Result<Self, SandboxError> {
        let mut files = Vec::new();
        for age in 0..LogLimits::default().files {
            let path = path(layout, age);
            match File::open(&path) {
                Ok(file) => files.push(BufReader::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(SandboxError::io("open", &path)(error)),
            }
        }
        // The oldest is read first.
        let file = files.pop();
        files.reverse();
        let (layout, partial) = (layout.clone(), Vec::new());
        Ok(Self { layout, since_ns, skip: 0, file, older: files, partial })
    }

    /// The next entry that is there.
    pub fn next_entry(&mut self) -> Result<Option<LogEntry>, SandboxError> {
        while let Some(entry) = self.entry()? {
            if self.skip == 0 {
                return Ok(Some(entry));
            }
            self.skip -= 1;
        }
        Ok(None)
    }

    /// The next entry, for which is waited, but not longer than `limit`. `None` with `Ended` when none
    /// can come any more.
    pub fn wait_entry(&mut self, limit: Duration) -> Result<Waited, SandboxError> {
        let deadline = Instant::now() + limit;
        loop {
            // Asked before it is read: what comes until the monitor ends is read then.
            let alive = client::is_alive(&self.layout)?;
            if let Some(entry) = self.next_entry()? {
                return Ok(Waited::Entry(entry));
            }
            if !alive {
                return Ok(Waited::Ended);
            }
            if Instant::now() >= deadline {
                return Ok(Waited::Nothing);
            }
            thread::sleep(PAUSE);
        }
    }

    fn entry(&mut self) -> Result<Option<LogEntry>, SandboxError> {
        let layout = self.layout.clone();
        let failed = || SandboxError::io("read", &path(&layout, 0));
        loop {
            let Some(file) = &mut self.file else {
                self.file = match File::open(path(&self.layout, 0)) {
                    Ok(file) => Some(BufReader::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(failed()(error)),
                };
                continue;
            };
            let room = u64::try_from(ENTRY_MAX - self.partial.len()).unwrap_or(0);
            file.take(room).read_until(b'\n', &mut self.partial).map_err(failed())?;
            if self.partial.ends_with(b"\n") || self.partial.len() >= ENTRY_MAX {
                let line = std::mem::take(&mut self.partial);
                // What is damaged is left out.
                match serde_json::from_slice::<LogEntry>(&line) {
                    Ok(entry) if entry.time_ns >= self.since_ns => return Ok(Some(entry)),
                    _ => continue,
                }
            }
            if !self.next_file().map_err(failed())? {
                return Ok(None);
            }
        }
    }

    /// At the end of a file: goes on to the next, if there is one.
    fn next_file(&mut self) -> io::Result<bool> {
        if let Some(next) = self.older.pop() {
            self.partial.clear();
            self.file = Some(next);
            return Ok(true);
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let newest = match File::open(path(&self.layout, 0)) {
            Ok(newest) => newest,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let (own, other) = (file.get_ref().metadata()?, newest.metadata()?);
        if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
            return Ok(false);
        }
        // What was written between the last look and the rotation comes first.
        if file.stream_position()? < own.len() {
            return Ok(true);
        }
        self.partial.clear();
        self.file = Some(BufReader::new(newest));
        Ok(true)
    }
}

/// What [`LogReader::wait_entry`] has waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// Something was written.
    Entry(LogEntry),
    /// Nothing in that time.
    Nothing,
    /// The sandbox has ended, and all was read.
    Ended,
}
