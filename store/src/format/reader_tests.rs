//! Tests of reading damaged indexes.

use zerocopy::{FromZeros, IntoBytes};

use super::*;

/// Returns an index that has a root directory and one group of `raw_len` bytes.
fn index_with_a_group(raw_len: u32) -> Index {
    index_with(raw_len, 0, &[]).unwrap()
}

/// Like [`index_with_a_group`], with these features and digests of decoded bytes.
fn index_with(raw_len: u32, features: u64, decoded: &[Digest]) -> Result<Index, FormatError> {
    let mut root = RawInode::new_zeroed();
    root.mode = 0o040_755.into();
    root.data = DataTag::Directory.code().into();
    let mut group = RawGroup::new_zeroed();
    (group.stored_len, group.raw_len) = (1.into(), raw_len.into());
    let mut blob = RawBlob::new_zeroed();
    (blob.size, blob.toc_offset) = (1.into(), 1.into());
    let mut header = RawHeader::new_zeroed();
    header.magic = INDEX_MAGIC;
    header.version = INDEX_VERSION.into();
    header.kind = Kind::Directory.code().into();
    header.features = features.into();
    let mut body = Vec::new();
    for (raw, section) in header.sections.iter_mut().zip(Section::ALL) {
        let bytes = match section {
            Section::Inodes => root.as_bytes(),
            Section::Groups => group.as_bytes(),
            Section::Blobs => blob.as_bytes(),
            Section::Decoded => decoded.as_bytes(),
            _ => &[],
        };
        raw.offset = ((size_of::<RawHeader>() + body.len()) as u64).into();
        raw.len = (bytes.len() as u64).into();
        body.extend_from_slice(bytes);
    }
    header.total_len = ((size_of::<RawHeader>() + body.len()) as u64).into();
    Index::from_bytes([header.as_bytes(), &body].concat())
}

#[test]
fn digests_of_decoded_bytes_are_read_with_the_feature_and_for_all_groups_only() {
    let digest = Digest::of(b"decoded");
    let decoded = |features, digests: &[Digest]| {
        index_with(100, features, digests).map(|index| index.decoded(GroupIdx(0)).unwrap())
    };
    assert_eq!(decoded(FEATURE_DECODED, &[digest]).unwrap(), Some(DecodedDigest(digest)));
    assert_eq!(decoded(FEATURE_DECODED, &[Digest::from_bytes([0; 32])]).unwrap(), None);
    assert_eq!(decoded(0, &[digest]).unwrap(), None);
    for wrong in [&[][..], &[digest, digest]] {
        assert!(decoded(FEATURE_DECODED, wrong).is_err());
    }
}

#[test]
fn extents_out_of_order_are_reported_with_their_position() {
    let index = index_with_a_group(100);
    let records = [0u64, 10, 5, 30].map(|offset| {
        let mut raw = RawExtent::new_zeroed();
        (raw.file_offset, raw.len) = (offset.into(), 10.into());
        raw
    });
    let source = ExtentSource::Many { first: 7, records: &records };
    let extents = Extents { index: &index, size: 100, source };
    let found: Vec<_> = extents.within(0..100).collect();
    assert_eq!(found.len(), 3);
    let error = found[2].as_ref().unwrap_err();
    assert!(matches!(error, FormatError::Corrupt { at: 9, .. }), "{error}");
}
