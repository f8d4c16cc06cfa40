//! Bytes for test files, the same in every run.

use std::fmt::Write as _;

/// `len` bytes that do not compress: the extended output of BLAKE3 over `seed`.
pub fn random(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// `len` bytes of numbered lines, which compress well.
pub fn compressible(seed: &str, len: usize) -> Vec<u8> {
    let mut text = String::with_capacity(len + 64);
    let mut line = 0_u64;
    while text.len() < len {
        line += 1;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{seed}: line {line} says what the line before it said");
    }
    let mut bytes = text.into_bytes();
    bytes.truncate(len);
    bytes
}
