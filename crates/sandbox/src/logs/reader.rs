//! Reads the log: the last entries, those since a given time, and new ones as they arrive.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::record;

use super::super::client;
use super::super::error::SandboxError;
use super::super::layout::Layout;
use super::{ENTRY_MAX, LogEntry, LogLimits, path};

/// The polling interval of a reader that follows the log.
const PAUSE: Duration = Duration::from_millis(50);

/// The number of attempts to open all files of the log without a rotation in between.
const OPEN_TRIES: u32 = 100;

/// The part of the log to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogFrom {
    /// Only the last `tail` entries of those that exist now.
    pub tail: Option<usize>,
    /// Only entries written at this time or later, in nanoseconds since the Unix epoch.
    pub since_ns: u64,
}

/// A reader of a sandbox's log. It holds one entry in memory.
#[derive(Debug)]
pub struct LogReader {
    layout: Layout,
    since_ns: u64,
    /// The number of entries still to skip.
    skip: usize,
    /// The file being read.
    file: Option<BufReader<File>>,
    /// The files to read after it, newest first.
    later: Vec<BufReader<File>>,
}

impl LogReader {
    /// Opens the log, which need not exist yet.
    pub fn open(layout: &Layout, from: LogFrom) -> Result<Self, SandboxError> {
        let mut later = open_files(layout)?;
        let mut skip = 0;
        if let Some(tail) = from.tail {
            // Count in the open files: a rotation before they are read must not change the number.
            for file in &mut later {
                skip += count(file, from.since_ns).map_err(failed(layout))?;
            }
            skip = skip.saturating_sub(tail);
        }
        let (layout, file) = (layout.clone(), later.pop());
        Ok(Self { layout, since_ns: from.since_ns, skip, file, later })
    }

    /// Returns the next entry; `None` if there is none yet.
    pub fn next_entry(&mut self) -> Result<Option<LogEntry>, SandboxError> {
        while let Some(entry) = self.entry()? {
            if self.skip == 0 {
                return Ok(Some(entry));
            }
            self.skip -= 1;
        }
        Ok(None)
    }

    /// Waits for the next entry for at most `limit`. Returns [`Waited::Ended`] if no more can
    /// follow.
    pub fn wait_entry(&mut self, limit: Duration) -> Result<Waited, SandboxError> {
        let deadline = Instant::now() + limit;
        loop {
            // Check this before reading: output written until the monitor exits is then included.
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
        loop {
            if let Some(file) = &mut self.file {
                let entry = entry_of(file, self.since_ns).map_err(failed(&self.layout))?;
                if let Some(entry) = entry {
                    return Ok(Some(entry));
                }
            }
            if !self.next_file()? {
                return Ok(None);
            }
        }
    }

    /// At the end of a file, advances to the next one. Returns whether there may be more to read.
    fn next_file(&mut self) -> Result<bool, SandboxError> {
        if let Some(next) = self.later.pop() {
            self.file = Some(next);
            return Ok(true);
        }
        let Some(file) = &self.file else {
            self.later = open_files(&self.layout)?;
            return Ok(!self.later.is_empty());
        };
        let failed = || failed(&self.layout);
        let own = file_id(file).map_err(failed())?;
        if id_of_age(&self.layout, 0).map_err(failed())? == Some(own) {
            return Ok(false);
        }
        for later in open_files(&self.layout)? {
            if file_id(&later).map_err(failed())? == own {
                break;
            }
            self.later.push(later);
        }
        // The caller first reads what was appended between its last read and the rotation.
        Ok(!self.later.is_empty())
    }
}

/// Returns the next entry of `file`; `None` at its end or before an incomplete line.
fn entry_of(file: &mut BufReader<File>, since_ns: u64) -> io::Result<Option<LogEntry>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = file.by_ref().take(ENTRY_MAX).read_until(b'\n', &mut line)?;
        let len = i64::try_from(len).map_err(io::Error::other)?;
        if !line.ends_with(b"\n") && len.unsigned_abs() < ENTRY_MAX {
            // Read it again from its start later: the writer truncates a torn write. The seek also
            // discards the buffer.
            file.seek(SeekFrom::Current(-len))?;
            return Ok(None);
        }
        // Skip damaged entries.
        match serde_json::from_slice::<LogEntry>(&line) {
            Ok(entry) if entry.time_ns >= since_ns => return Ok(Some(entry)),
            _ => {}
        }
    }
}

/// Counts the entries of `file` and rewinds it.
fn count(file: &mut BufReader<File>, since_ns: u64) -> io::Result<usize> {
    let mut count = 0;
    while entry_of(file, since_ns)?.is_some() {
        count += 1;
    }
    file.rewind()?;
    Ok(count)
}

/// Opens all files of the log, newest first.
///
/// A rotation renames one file after the other. A file never moves to a newer place and, while it is
/// open, its id is not reused. So if every place has the same file after all are opened as when it was
/// opened, there was a moment at which they were the log.
fn open_files(layout: &Layout) -> Result<Vec<BufReader<File>>, SandboxError> {
    let failed = || failed(layout);
    let ages = 0..LogLimits::default().files;
    let mut files = Vec::new();
    for _ in 0..OPEN_TRIES {
        let mut opened = Vec::new();
        files.clear();
        for age in ages.clone() {
            let file = open_regular(&path(layout, age))?.map(BufReader::new);
            opened.push(file.as_ref().map(file_id).transpose().map_err(failed())?);
            files.extend(file);
        }
        let now = ages.clone().map(|age| id_of_age(layout, age)).collect::<io::Result<Vec<_>>>();
        if now.map_err(failed())? == opened {
            return Ok(files);
        }
    }
    // The log is rotated faster than it can be opened. The order of older files is unknown.
    files.truncate(1);
    Ok(files)
}

/// Identifies an open file: device and inode, which are not reused while it is open.
fn file_id(file: &BufReader<File>) -> io::Result<(u64, u64)> {
    file.get_ref().metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Identifies the file of this age; `None` if there is none, e.g. during a rotation.
fn id_of_age(layout: &Layout, age: u32) -> io::Result<Option<(u64, u64)>> {
    match fs::metadata(path(layout, age)) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a regular file; `None` if it does not exist. Neither blocks on a FIFO nor follows a
/// symlink.
fn open_regular(path: &Path) -> Result<Option<File>, SandboxError> {
    record::open(path).map_err(SandboxError::Record)
}

fn failed(layout: &Layout) -> impl FnOnce(io::Error) -> SandboxError + use<> {
    SandboxError::io("read", &path(layout, 0))
}

/// The result of [`LogReader::wait_entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// An entry.
    Entry(LogEntry),
    /// The wait timed out.
    Nothing,
    /// The sandbox has ended and the log is fully read.
    Ended,
}
