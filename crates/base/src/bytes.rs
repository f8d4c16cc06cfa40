//! Buffers that a read has filled in part.

use std::io::{Error, ErrorKind, Result};

/// Returns the first `len` bytes of `buffer`, which a read has filled.
///
/// # Errors
///
/// `InvalidData` if the buffer is shorter: its reader is broken, and must not look as if it had
/// reached the end.
pub fn filled(buffer: &[u8], len: usize) -> Result<&[u8]> {
    buffer.get(..len).ok_or_else(|| {
        let room = buffer.len();
        Error::new(ErrorKind::InvalidData, format!("a read into {room} bytes reported {len}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_more_than_there_is_room_for_is_an_error() {
        assert_eq!(filled(b"abc", 2).unwrap(), b"ab");
        assert_eq!(filled(b"abc", 0).unwrap(), b"");
        assert_eq!(filled(b"abc", 4).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
