//! How answers are printed: text for people, JSON for machines.

use std::io::{self, Write};

use serde::Serialize;

pub(super) use crate::utc::time;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// Prints `value` as JSON, or what `text` writes.
pub(super) fn print(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, value)?;
            out.write_all(b"\n")?;
        }
        Format::Text => text(&mut out)?,
    }
    out.flush()
}

/// `17`, `4.2K`, `130M`: at most four characters and a unit of 1024.
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

/// Bytes that may be anything as a terminal may show them: UTF-8 as it is, the rest escaped.
pub(super) fn shown(name: &[u8]) -> String {
    let mut out = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
        }
        out.extend(chunk.invalid().iter().flat_map(|byte| byte.escape_ascii()).map(char::from));
    }
    out
}

/// A table: columns as wide as they must be, two spaces between; the last is not padded.
pub(super) fn table(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (place, cell) in row.iter().enumerate() {
            let len = cell.chars().count();
            match widths.get_mut(place) {
                Some(width) => *width = len.max(*width),
                None => widths.push(len),
            }
        }
    }
    for row in rows {
        let mut line = String::new();
        for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if place + 1 == row.len() {
                line.push_str(cell);
            } else {
                line.extend([&format!("{cell:<width$}"), "  "]);
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
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
        assert_eq!(shown("grün".as_bytes()), "grün");
        assert_eq!(shown(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown(b"\xff\xfe"), "\\xff\\xfe");
    }
}
