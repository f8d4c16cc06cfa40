//! Log positions, compared by waiters to detect new output.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::super::client;
use super::super::error::SandboxError;
use super::super::layout::Layout;
use super::path;

/// The end of a log at some moment. If two marks are equal, nothing was written between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogMark {
    /// Inode and length of the newest file.
    file: Option<(u64, u64)>,
    /// Whether more output can follow.
    pub open: bool,
}

impl LogMark {
    /// Returns the current mark of a sandbox's log. Blocks.
    pub fn of(layout: &Layout) -> Result<Self, SandboxError> {
        // Check this before the file: output written until the monitor exits is then included.
        let open = client::is_alive(layout)?;
        let path = path(layout, 0);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Self { file: Some((meta.ino(), meta.len())), open }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { file: None, open }),
            Err(error) => Err(SandboxError::io("look at", &path)(error)),
        }
    }
}
