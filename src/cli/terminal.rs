//! This command's terminal: its size, and its keys as they are typed.

use std::io::{IsTerminal, stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::error::CliError;

/// How many lines and columns a terminal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) rows: u16,
    pub(super) columns: u16,
}

/// Whether keys come from a terminal.
pub(super) fn is_there() -> bool {
    stdin().is_terminal()
}

/// Its size now, if there is one.
pub(super) fn size() -> Option<Size> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some(Size { rows: size.ws_row, columns: size.ws_col })
}

/// The terminal passes every key on, without waiting for a line and without acting on any, until this
/// is dropped.
pub(super) struct Raw(Termios);

impl Raw {
    pub(super) fn new() -> Result<Self, CliError> {
        let before = tcgetattr(stdin()).map_err(std::io::Error::from)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw).map_err(std::io::Error::from)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing helps if it fails: the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}
