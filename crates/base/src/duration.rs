//! Parses durations as users type them: `5s`, `100ms`, `2m`, `1h`.

use std::time::Duration;

/// Parses an integer with a unit; 0 needs none.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no length of time such as 500ms, 5s, 2m or 1h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "" if number == 0 => Some(0),
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    milliseconds.map(Duration::from_millis).ok_or_else(wrong)
}

/// Formats a duration in whole milliseconds, such that [`parse`] accepts it.
pub fn format(length: Duration) -> String {
    format!("{}ms", length.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, millis) in [("0", 0), ("100ms", 100), ("5s", 5000), ("2m", 120_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse(&format(Duration::from_secs(7))), Ok(Duration::from_secs(7)));
    }
}
