//! Prints results as text for people or JSON for programs.

use std::fmt::{self, Display};
use std::io::{self, Write};

use inlay_base::text::{Escaped, EscapedBytes, Lines};
use serde::Serialize;

pub(super) use inlay_base::time::utc;

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputFormat {
    Text,
    Json,
}

/// Prints `value` as JSON, or the text that `text` writes.
pub(super) fn print(
    format: OutputFormat,
    value: &impl Serialize,
    text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    print_to(&mut io::stdout().lock(), format, value, text)
}

/// Writes `value` to `out` as JSON, or the text that `text` writes.
pub(super) fn print_to(
    out: &mut dyn Write,
    format: OutputFormat,
    value: &impl Serialize,
    text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    match format {
        OutputFormat::Json => {
            serde_json::to_writer_pretty(&mut out, value)?;
            out.write_all(b"\n")?;
        }
        // `Lines` escapes control characters that a report failed to escape.
        OutputFormat::Text => text(&mut Lines(&mut out))?,
    }
    out.flush()
}

/// Writes a line to standard error. Best effort: standard error may be closed, or its disk full.
pub(super) fn note(line: impl Display) {
    writeln!(io::stderr(), "{line}").ok();
}

/// Formats a size in units of 1024, rounded down, e.g. `17`, `4.2K`, `130M`.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [(&str, u64); 5] =
        [("P", 1 << 50), ("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];
    for (unit, size) in UNITS {
        if number >= size {
            let tenths = u128::from(number) * 10 / u128::from(size);
            return if tenths < 100 {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            } else {
                format!("{}{unit}", number / size)
            };
        }
    }
    number.to_string()
}

/// Formats arbitrary bytes for people: escapes invalid UTF-8 and control characters.
pub(super) fn escaped(name: &[u8]) -> String {
    EscapedBytes(name).to_string()
}

/// Arbitrary bytes for programs: UTF-8 as a string, anything else as an array of bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub(super) enum Exact {
    Text(String),
    Bytes(Vec<u8>),
}

impl Exact {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Exact {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(bytes.to_vec()),
        }
    }
}

impl Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EscapedBytes(self.as_bytes()).fmt(f)
    }
}

/// Widths of the columns of a table, in characters.
#[derive(Debug, Default)]
pub(super) struct Columns(Vec<usize>);

impl Columns {
    /// Widens columns to fit a row.
    pub(super) fn measure(&mut self, row: &[String]) {
        for (place, cell) in row.iter().enumerate() {
            let len = cell.chars().count();
            match self.0.get_mut(place) {
                Some(width) => *width = len.max(*width),
                None => self.0.push(len),
            }
        }
    }

    /// Formats a row: pads each cell to its column's width, separated by two spaces.
    pub(super) fn line(&self, row: &[String]) -> String {
        let cells = row.iter().zip(&self.0).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ")
    }
}

/// Writes a table with columns separated by two spaces, without trailing spaces. Escapes control
/// characters in cells.
pub(super) fn table(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let escaped = |row: &Vec<String>| row.iter().map(|cell| Escaped(cell).to_string()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(escaped).collect();
    let mut columns = Columns::default();
    for row in &rows {
        columns.measure(row);
    }
    rows.iter().try_for_each(|row| writeln!(out, "{}", columns.line(row).trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (number, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (10 << 10, "10K"),
            ((10 << 20) - 1, "9.9M"),
            (3 << 30, "3.0G"),
            (u64::MAX, "16383P"),
        ] {
            assert_eq!(bytes(number), text, "{number}");
        }
    }

    #[test]
    fn names_can_not_write_to_the_terminal() {
        assert_eq!(escaped("grün".as_bytes()), "grün");
        assert_eq!(escaped(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(escaped(b"\xff\xfe"), "\\xff\\xfe");
        let mut out = Vec::new();
        table(&mut out, &[vec!["a\nb".into(), "\x1b[m".into()], vec!["c".into()]]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a\\nb  \\u{1b}[m\nc\n");
    }

    #[test]
    fn machines_get_names_as_they_are() {
        let json = |name: &[u8]| serde_json::to_string(&Exact::from(name)).unwrap();
        assert_eq!(json(b"a\n\x1b"), r#""a\n\u001b""#);
        assert_eq!(json(b"\xffa"), "[255,97]");
        assert_eq!(Exact::from(&b"\xff\n"[..]).to_string(), "\\xff\\n");
    }
}
