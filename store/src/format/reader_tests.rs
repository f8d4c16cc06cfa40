//! Tests of reading damaged indexes.

use zerocopy::{FromZeros, IntoBytes};

use super::*;

/// Returns an index that has a root directory and one group of `raw_len` bytes.
fn index_with_a_group(raw_len: u32) -> Index {
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
    let mut body = Vec::new();
    for (raw, section) in header.sections.iter_mut().zip(Section::ALL) {
        let bytes = match section {
            Section::Inodes => root.as_bytes(),
            Section::Groups => group.as_bytes(),
            Section::Blobs => blob.as_bytes(),
            _ => &[],
        };
        raw.offset = ((size_of::<RawHeader>() + body.len()) as u64).into();
        raw.len = (bytes.len() as u64).into();
        body.extend_from_slice(bytes);
    }
    header.total_len = ((size_of::<RawHeader>() + body.len()) as u64).into();
    Index::from_bytes([header.as_bytes(), &body].concat()).unwrap()
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
