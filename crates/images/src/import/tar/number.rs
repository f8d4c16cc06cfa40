//! Parses numbers in tar headers and PAX records.
//!
//! Header fields hold octal digits or, for values that do not fit, GNU's base-256: a set top bit,
//! then a big-endian two's complement number. PAX records hold decimal digits, times with a
//! fraction.

use inlay_store::format::Timestamp;

/// Parses a header's field; an empty one is 0. `None` if it is malformed.
pub(super) fn field(bytes: &[u8]) -> Option<i128> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => {
            let head = i128::from(first & 0x7f) - i128::from(first & 0x40) * 2;
            // The widest field has 12 bytes, so this cannot overflow.
            bytes.get(1..)?.iter().take(11).try_fold(head, |value, &byte| {
                value.checked_mul(256)?.checked_add(i128::from(byte))
            })
        }
        _ => octal(bytes),
    }
}

fn octal(bytes: &[u8]) -> Option<i128> {
    let text = bytes.split(|&b| b == 0).find(|part| !part.is_empty()).unwrap_or(&[]);
    text.trim_ascii().iter().try_fold(0i128, |value, &digit| {
        let digit = digit.checked_sub(b'0').filter(|&d| d < 8)?;
        value.checked_mul(8)?.checked_add(digit.into())
    })
}

/// Parses an unsigned decimal number.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses a time in seconds since 1970: a decimal number with an optional sign and fraction. Rounds
/// towards the past at nanosecond precision, like GNU tar.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let mut parts = text.splitn(2, |&b| b == b'.');
    let whole = parts.next().unwrap_or(&[]);
    let fraction = parts.next().unwrap_or(&[]);
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let whole = i64::try_from(decimal(whole)?).ok()?;
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    if !negative {
        return Some(Timestamp { secs: whole, nanos });
    }
    let finer = fraction.get(9..).is_some_and(|rest| rest.iter().any(|&d| d != b'0'));
    let nanos = nanos + u32::from(finer);
    Some(match nanos {
        0 => Timestamp { secs: -whole, nanos: 0 },
        nanos => Timestamp { secs: -whole - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_octal_or_base_256() {
        assert_eq!(field(b"0000644\0"), Some(0o644));
        assert_eq!(field(b"   644 \0"), Some(0o644));
        assert_eq!(field(b"\0\0\0\0"), Some(0));
        assert_eq!(field(b"        "), Some(0));
        assert_eq!(field(b"77777777"), Some(0o77_777_777));
        assert_eq!(field(b"0000649\0"), None);
        assert_eq!(field(b"-000644\0"), None);
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some((2 << 32) + 1));
        assert_eq!(field(&[0xff; 12]), Some(-1));
        assert_eq!(field(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
    }

    #[test]
    fn times_have_signs_and_fractions() {
        let at = |secs, nanos| Some(Timestamp { secs, nanos });
        assert_eq!(time(b"1234567890"), at(1_234_567_890, 0));
        assert_eq!(time(b"1.5"), at(1, 500_000_000));
        assert_eq!(time(b"1.0000000019"), at(1, 1));
        assert_eq!(time(b"-1"), at(-1, 0));
        assert_eq!(time(b"-1.25"), at(-2, 750_000_000));
        assert_eq!(time(b"-0.000000001"), at(-1, 999_999_999));
        assert_eq!(time(b"-1.0000000001"), at(-2, 999_999_999));
        assert_eq!(time(b"-0.9999999999"), at(-1, 0));
        for wrong in [&b""[..], b".", b"-", b"1.x", b"x", b"1e3", b"99999999999999999999"] {
            assert_eq!(time(wrong), None);
        }
    }
}
