//! Size and raw mode of this command's terminal.

use std::io::{IsTerminal, stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::error::CliError;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) rows: u16,
    pub(super) columns: u16,
}

/// Whether standard input is a terminal.
pub(super) fn is_there() -> bool {
    stdin().is_terminal()
}

/// Returns the size of the terminal; `None` without a terminal.
pub(super) fn size() -> Option<Size> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Raw mode of the terminal: no line buffering, echo or signal keys. Restored on drop.
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
        // Best effort: on failure the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}
