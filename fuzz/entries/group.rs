//! The group decoder. A hostile index may name any bytes with their right digest.

use inlay_store::format::layout::GROUP_RAW_LEN_MAX;
use inlay_store::format::{BlobIdx, Group};
use inlay_store::group::decode_group;
use inlay_store::ids::{Digest, GroupDigest};

/// Takes four bytes as the length that the index promises, and the rest as what is stored.
pub(crate) fn run(bytes: &[u8]) {
    let Some((raw_len, stored)) = bytes.split_first_chunk::<4>() else { return };
    let Ok(stored_len) = u32::try_from(stored.len()) else { return };
    let raw_len = u32::from_le_bytes(*raw_len);
    let group = Group {
        digest: GroupDigest(Digest::of(stored)),
        blob: BlobIdx(0),
        ordinal: 0,
        offset: 0,
        stored_len,
        raw_len,
        owner: None,
    };
    if let Ok(raw) = decode_group(stored, &group) {
        assert_eq!(raw.len(), raw_len as usize, "a group has the length that was promised");
        assert!(raw_len <= GROUP_RAW_LEN_MAX, "no group is longer than the limit");
    }
    let other = Group { digest: GroupDigest(Digest::of(b"other")), ..group };
    assert!(decode_group(stored, &other).is_err(), "other bytes than promised are refused");
}
