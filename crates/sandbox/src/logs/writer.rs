//! Writes the log. Never fails its caller: lost entries are counted and reported later in the log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use inlay_base::time::since_epoch;

use super::super::error::SandboxError;
use super::super::files;
use super::super::layout::Layout;
use super::{LINE_MAX, LogEntry, LogLimits, LogStream, path};

/// The log of one sandbox, open for writing.
#[derive(Debug)]
pub(in super::super) struct LogWriter {
    layout: Layout,
    limits: LogLimits,
    file: Option<File>,
    len: u64,
    /// The incomplete last line of each stream.
    pending: [Vec<u8>; 2],
    /// The number of entries that could not be written.
    lost: u64,
}

impl LogWriter {
    /// Opens the log in `layout` for appending, or creates it.
    pub(in super::super) fn open(layout: &Layout, limits: LogLimits) -> Result<Self, SandboxError> {
        files::make_private_dirs(&layout.log())?;
        let mut writer = Self {
            layout: layout.clone(),
            limits,
            file: None,
            len: 0,
            pending: [Vec::new(), Vec::new()],
            lost: 0,
        };
        writer.reopen().map_err(SandboxError::io("open", &path(layout, 0)))?;
        Ok(writer)
    }

    /// Takes output of the process: writes complete lines and keeps the rest.
    pub(in super::super) fn take(&mut self, stream: LogStream, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = piece;
            while !rest.is_empty() {
                let pending = self.pending_of(stream);
                let (now, later) = rest.split_at(rest.len().min(LINE_MAX - pending.len()));
                pending.extend_from_slice(now);
                if pending.ends_with(b"\n") || pending.len() == LINE_MAX {
                    self.flush(stream);
                }
                rest = later;
            }
        }
    }

    /// Writes the incomplete last lines.
    pub(in super::super) fn finish(&mut self) {
        self.flush(LogStream::Stdout);
        self.flush(LogStream::Stderr);
    }

    fn pending_of(&mut self, stream: LogStream) -> &mut Vec<u8> {
        let [stdout, stderr] = &mut self.pending;
        match stream {
            LogStream::Stdout => stdout,
            LogStream::Stderr => stderr,
        }
    }

    fn flush(&mut self, stream: LogStream) {
        let line = std::mem::take(self.pending_of(stream));
        if line.is_empty() {
            return;
        }
        if self.lost > 0 {
            let said =
                format!("[inlay: {} lines of output were lost: {}]\n", self.lost, "the disk");
            if self.write(LogStream::Stderr, said.as_bytes()).is_err() {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if let Err(error) = self.write(stream, &line) {
            if self.lost == 0 {
                tracing::warn!(%error, "can't write the log; output is lost");
            }
            self.lost += 1;
        }
    }

    fn write(&mut self, stream: LogStream, line: &[u8]) -> io::Result<()> {
        if self.len >= self.limits.file {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let time_ns = u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX);
        let mut json = serde_json::to_vec(&LogEntry::new(time_ns, stream, line))?;
        json.push(b'\n');
        let written = file.write_all(&json);
        if written.is_err() {
            // Truncate the torn write, so that the next entry starts on a line of its own.
            file.set_len(self.len).ok();
        } else {
            self.len += u64::try_from(json.len()).unwrap_or(u64::MAX);
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for age in (0..self.limits.files.saturating_sub(1)).rev() {
            match fs::rename(path(&self.layout, age), path(&self.layout, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.limits.files <= 1 {
            fs::remove_file(path(&self.layout, 0))?;
        }
        self.reopen()
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true).mode(0o600);
        let mut file = options.open(path(&self.layout, 0))?;
        self.len = file.metadata()?.len();
        // A writer that was killed may have left a torn line.
        if self.len > 0 && !ends_with_line_end(&file, self.len)? {
            file.write_all(b"\n")?;
            self.len += 1;
        }
        self.file = Some(file);
        Ok(())
    }
}

fn ends_with_line_end(file: &File, len: u64) -> io::Result<bool> {
    let mut last = [0];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut last, len - 1)?;
    Ok(last == *b"\n")
}
