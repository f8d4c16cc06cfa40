//! Escapes untrusted text for terminals and logs.
//!
//! File names, labels and messages from sandboxes, images and stores may contain any characters.
//! Escape sequences would act on the terminal, line breaks would forge log lines, and directional
//! formatting would disguise a name as another. All of these are escaped here, and nowhere else.

use std::fmt::{self, Display, Write as _};
use std::io;
use std::path::Path;

/// Displays text with every character escaped that could act on a terminal or break a line.
///
/// Letters of all scripts pass through unchanged.
///
/// ```
/// use inlay_base::text::Escaped;
/// assert_eq!(Escaped("grün\n\x1b[2J").to_string(), "grün\\n\\u{1b}[2J");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Escaped<T>(pub T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

/// Possibly invalid UTF-8, displayed like [`Escaped`], with invalid bytes as `\xNN`.
#[derive(Debug, Clone, Copy)]
pub struct EscapedBytes<'a>(pub &'a [u8]);

impl<'a> EscapedBytes<'a> {
    /// Wraps the bytes of a path.
    pub fn of(path: &'a Path) -> Self {
        Self(path.as_os_str().as_encoded_bytes())
    }
}

impl Display for EscapedBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            Escaper(f).write_str(chunk.valid())?;
            for byte in chunk.invalid() {
                write!(f, "{}", byte.escape_ascii())?;
            }
        }
        Ok(())
    }
}

/// Whether a character is escaped.
pub fn is_unsafe(c: char) -> bool {
    // Besides control characters: marks, embeddings, overrides and isolates of the bidirectional
    // algorithm (UAX #9), line and paragraph separators, deprecated formatting, the byte order
    // mark, and tags, which are invisible.
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

struct Escaper<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaper<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(text, is_unsafe, |piece| self.0.write_str(piece))
    }
}

/// Passes `text` to `out` in pieces, with each unsafe character escaped.
fn escape<E>(
    text: &str,
    is_unsafe: impl Fn(char) -> bool,
    mut out: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = text;
    while let Some((place, c)) = rest.char_indices().find(|(_, c)| is_unsafe(*c)) {
        let (safe, from) = rest.split_at(place);
        if !safe.is_empty() {
            out(safe)?;
        }
        out(&c.escape_default().to_string())?;
        rest = from.get(c.len_utf8()..).unwrap_or_default();
    }
    if rest.is_empty() { Ok(()) } else { out(rest) }
}

/// A writer for lines of text that escapes all unsafe characters but line breaks and tabs.
///
/// A safety net below a whole report: names in it must still be wrapped in [`Escaped`], or a line
/// break in a name breaks the line of the report.
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: io::Write> io::Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let unsafe_here = |c| is_unsafe(c) && !matches!(c, '\n' | '\t');
        for chunk in bytes.utf8_chunks() {
            escape(chunk.valid(), unsafe_here, |piece| self.0.write_all(piece.as_bytes()))?;
            for byte in chunk.invalid() {
                write!(self.0, "{}", byte.escape_ascii())?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn escapes_and_line_breaks_are_neutralized() {
        for (text, shown) in [
            ("", ""),
            ("grün 漢字 👩‍👩", "grün 漢字 👩‍👩"),
            ("a\x1b[2Jb\r\n\t\0", "a\\u{1b}[2Jb\\r\\n\\t\\u{0}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("x\u{202e}gpj\u{2066}.\u{2028}", "x\\u{202e}gpj\\u{2066}.\\u{2028}"),
            ("\u{200e}\u{200f}\u{61c}\u{feff}", "\\u{200e}\\u{200f}\\u{61c}\\u{feff}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
            assert_eq!(EscapedBytes(text.as_bytes()).to_string(), shown);
            assert!(!Escaped(text).to_string().chars().any(is_unsafe));
            // Escaping is idempotent.
            assert_eq!(Escaped(Escaped(text)).to_string(), shown);
        }
        assert_eq!(EscapedBytes(b"\xff\xfea\xc3").to_string(), "\\xff\\xfea\\xc3");
        assert_eq!(EscapedBytes::of(Path::new("/a\nb")).to_string(), "/a\\nb");
    }

    #[test]
    fn reports_keep_their_lines_and_nothing_else() {
        let mut out = Lines(Vec::new());
        out.write_all(b"a\tb\n\x1b[31m\x80 c\xc2\x9b").unwrap();
        writeln!(out, "\u{202e}").unwrap();
        out.flush().unwrap();
        let text = String::from_utf8(out.0).unwrap();
        assert_eq!(text, "a\tb\n\\u{1b}[31m\\x80 c\\u{9b}\\u{202e}\n");
    }
}
