//! Parses and prints byte sizes such as `20GiB`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// The text is not a byte size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: use a whole number and a unit, such as 500M, 20GiB or 1T")]
pub struct ByteSizeError(String);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS {
            let unit = 1u64 << shift;
            if self.0 >= unit {
                // Rounded down, so that a size is never overstated.
                let tenths = (self.0 % unit) * 10 / unit;
                return write!(f, "{}.{tenths} {letter}iB", self.0 / unit);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    /// Reads `4096`, `500M`, `20GiB` or `1tb`: every unit is a power of 1024.
    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let wrong = || ByteSizeError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim().to_ascii_uppercase();
        let letter = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
        let shift = match letter {
            "" if !unit.starts_with('I') => 0,
            letter => UNITS
                .into_iter()
                .find(|(known, _)| letter.len() == 1 && letter.starts_with(*known))
                .map(|(_, shift)| shift)
                .ok_or_else(wrong)?,
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("500M", 500 << 20),
            ("20GiB", 20 << 30),
            ("20 gb", 20 << 30),
            ("1t", 1 << 40),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for text in ["", "G", "1.5G", "-1", "1X", "1KK", "1iB", "99999999999T"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(ByteSize(1023).to_string(), "1023 B");
        assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteSize(5 << 40).to_string(), "5.0 TiB");
    }
}
