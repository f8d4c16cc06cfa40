//! Computes BLAKE3 from the chaining values of aligned pieces, so that each piece can be verified
//! on its own.
//!
//! BLAKE3 is a binary tree over 1 KiB chunks. A piece whose length is a power of two of chunks and
//! that starts at a multiple of its length is a whole subtree, and the chaining values of all
//! pieces merge into the plain hash of the whole. (BLAKE3 specification, sections 2.1 and 5.5; the
//! crate's `hazmat` module.)

use blake3::hazmat::{self, HasherExt, Mode};

use crate::ids::Digest;

/// The chaining value of a piece; the hash itself if the piece is the whole.
pub(crate) type ChainingValue = hazmat::ChainingValue;

/// Returns the chaining value of the piece number `place` of `count`, all of them `piece_len` bytes
/// long except for the last.
pub(crate) fn chaining_value(
    place: u64,
    count: u64,
    piece_len: u32,
    piece: &[u8],
) -> ChainingValue {
    if count == 1 {
        return *blake3::hash(piece).as_bytes();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(place * u64::from(piece_len));
    hasher.update(piece);
    hasher.finalize_non_root()
}

/// Merges the chaining values of all pieces of `len` bytes into their hash. The result means
/// nothing unless there is one value for each piece.
pub(crate) fn root(len: u64, piece_len: u32, values: &[ChainingValue]) -> Digest {
    if let [only] = values {
        return Digest::from_bytes(*only);
    }
    let (left, right) = split(len, piece_len, values);
    let hash = hazmat::merge_subtrees_root(
        &subtree(left.0, piece_len, left.1),
        &subtree(right.0, piece_len, right.1),
        Mode::Hash,
    );
    Digest::from_bytes(*hash.as_bytes())
}

/// Merges the chaining values of a subtree. Recursion depth is the logarithm of the number of
/// pieces: at most 17 for the largest index.
fn subtree(len: u64, piece_len: u32, values: &[ChainingValue]) -> ChainingValue {
    match values {
        [] => [0; 32],
        [only] => *only,
        _ => {
            let (left, right) = split(len, piece_len, values);
            hazmat::merge_subtrees_non_root(
                &subtree(left.0, piece_len, left.1),
                &subtree(right.0, piece_len, right.1),
                Mode::Hash,
            )
        }
    }
}

type Subtree<'a> = (u64, &'a [ChainingValue]);

/// Splits a subtree as BLAKE3 does.
fn split(len: u64, piece_len: u32, values: &[ChainingValue]) -> (Subtree<'_>, Subtree<'_>) {
    let left_len = hazmat::left_subtree_len(len);
    let left_count = usize::try_from(left_len / u64::from(piece_len)).unwrap_or(usize::MAX);
    let (left, right) = values.split_at_checked(left_count).unwrap_or((values, &[]));
    ((left_len, left), (len - left_len, right))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn chaining_values_merge_into_the_plain_hash(len in 1usize..600_000, shift in 0u32..8) {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect();
            let piece_len = 1024u32 << shift;
            let pieces: Vec<&[u8]> = bytes.chunks(piece_len as usize).collect();
            let count = pieces.len() as u64;
            let values: Vec<_> = (0u64..)
                .zip(&pieces)
                .map(|(place, piece)| chaining_value(place, count, piece_len, piece))
                .collect();
            prop_assert_eq!(root(len as u64, piece_len, &values), Digest::of(&bytes));
        }
    }
}
