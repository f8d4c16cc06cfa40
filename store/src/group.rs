//! Verifies and decodes groups. No other module decompresses groups that a store sent.

use zstd::zstd_safe;

use crate::format::layout::{GROUP_RAW_LEN_MAX, GROUP_STORED_LEN_MAX};
use crate::format::{FormatError, Group};
use crate::ids::{DecodedDigest, Digest, GroupDigest};

/// Verifies the stored bytes of `group` against its digest and decodes them.
///
/// The stored bytes are one zstd frame. The result has exactly `group.raw_len` bytes; no more than
/// that is ever allocated, even if the frame claims more. The decoded bytes depend on the stored
/// bytes alone, so all snapshots that contain the same digest can share them.
pub fn decode_group(stored: &[u8], group: &Group) -> Result<Vec<u8>, FormatError> {
    let decode = |why: String| FormatError::Decode { what: name(group.digest), why };
    if group.raw_len > GROUP_RAW_LEN_MAX {
        return Err(FormatError::TooLarge {
            what: "a group's decoded size",
            found: group.raw_len.into(),
            limit: GROUP_RAW_LEN_MAX.into(),
        });
    }
    if stored.len() > GROUP_STORED_LEN_MAX as usize {
        return Err(FormatError::TooLarge {
            what: "a group's stored size",
            found: stored.len() as u64,
            limit: GROUP_STORED_LEN_MAX.into(),
        });
    }
    if stored.len() != group.stored_len as usize {
        return Err(decode(format!("{} bytes came, {} expected", stored.len(), group.stored_len)));
    }
    let found = Digest::of(stored);
    if found != group.digest.0 {
        return Err(FormatError::Digest {
            what: name(group.digest),
            expected: group.digest.to_string(),
            found: found.to_string(),
        });
    }
    let frame = zstd_safe::find_frame_compressed_size(stored)
        .map_err(|code| decode(zstd_safe::get_error_name(code).to_owned()))?;
    if frame != stored.len() {
        return Err(decode(format!("its frame ends after {frame} of {} bytes", stored.len())));
    }
    let raw_len = group.raw_len as usize;
    let raw = zstd::bulk::decompress(stored, raw_len).map_err(|error| decode(error.to_string()))?;
    if raw.len() != raw_len {
        return Err(decode(format!("{} bytes came out, {raw_len} expected", raw.len())));
    }
    Ok(raw)
}

/// Checks the bytes of `group` that [`decode_group`] returned against the digest that its index
/// has for them. Readers need not: a wrong one only makes the units of the group unusable.
pub fn check_decoded(
    decoded: &[u8],
    group: &Group,
    expected: DecodedDigest,
) -> Result<(), FormatError> {
    let found = DecodedDigest(Digest::of(decoded));
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Digest {
        what: format!("the contents of {}", name(group.digest)),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

fn name(digest: GroupDigest) -> String {
    format!("group {digest}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::BlobIdx;

    fn group_of(stored: &[u8], raw_len: usize) -> Group {
        Group {
            digest: GroupDigest(Digest::of(stored)),
            blob: BlobIdx(0),
            ordinal: 0,
            offset: 0,
            stored_len: u32::try_from(stored.len()).unwrap(),
            raw_len: u32::try_from(raw_len).unwrap(),
            owner: None,
        }
    }

    #[test]
    fn a_group_comes_back() {
        let raw = b"neighbouring chunks ".repeat(1000);
        let stored = zstd::bulk::compress(&raw, 3).unwrap();
        assert_eq!(decode_group(&stored, &group_of(&stored, raw.len())).unwrap(), raw);
    }

    #[test]
    fn decoded_bytes_with_another_digest_are_reported() {
        let (raw, stored) = (b"raw", b"stored");
        let group = group_of(stored, raw.len());
        let expected = DecodedDigest(Digest::of(raw));
        check_decoded(raw, &group, expected).unwrap();
        let error = check_decoded(b"row", &group, expected).unwrap_err().to_string();
        assert!(error.contains("the contents of group"), "{error}");
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let raw = b"x".repeat(5000);
        let stored = zstd::bulk::compress(&raw, 3).unwrap();
        for raw_len in [0, 1, 4999, 5001, GROUP_RAW_LEN_MAX as usize] {
            assert!(decode_group(&stored, &group_of(&stored, raw_len)).is_err(), "{raw_len}");
        }
        let mut group = group_of(&stored, raw.len());
        group.raw_len = GROUP_RAW_LEN_MAX + 1;
        assert!(matches!(decode_group(&stored, &group), Err(FormatError::TooLarge { .. })));
        let mut group = group_of(&stored, raw.len());
        group.stored_len += 1;
        assert!(decode_group(&stored, &group).is_err());
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let stored = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert!(decode_group(&stored, &group_of(&stored, 4096)).is_err());
    }

    #[test]
    fn a_second_frame_is_refused() {
        let mut stored = zstd::bulk::compress(b"one", 3).unwrap();
        stored.extend(zstd::bulk::compress(b"two", 3).unwrap());
        assert!(decode_group(&stored, &group_of(&stored, 6)).is_err());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let raw = b"some bytes".repeat(20);
        let stored = zstd::bulk::compress(&raw, 3).unwrap();
        let group = group_of(&stored, raw.len());
        for bit in 0..stored.len() * 8 {
            let mut bad = stored.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode_group(&bad, &group), Err(FormatError::Digest { .. })));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_input_gives_bytes_or_an_error(
            stored in proptest::collection::vec(any::<u8>(), 0..300),
            raw_len in 0usize..10_000,
        ) {
            if let Ok(raw) = decode_group(&stored, &group_of(&stored, raw_len)) {
                prop_assert_eq!(raw.len(), raw_len);
            }
        }
    }
}
