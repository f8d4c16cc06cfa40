//! The packed form of an index, as it comes from a store.

use inlay_store::format::packed::{PACKED_HEADER_LEN, SegmentTable, unpack_index};
use inlay_store::ids::{Digest, IndexDigest};

/// Takes the bytes as a packed index. The id is the first chaining value of its list: with one
/// segment, this is what the id has to be, so that what follows the check is reached as well.
pub(crate) fn run(bytes: &[u8]) {
    let start = usize::try_from(PACKED_HEADER_LEN).unwrap_or(usize::MAX);
    let first = bytes.get(start..).and_then(<[u8]>::first_chunk::<32>);
    let id = IndexDigest(first.map_or_else(|| Digest::of(bytes), |v| Digest::from_bytes(*v)));
    let mut out = Vec::new();
    if let Ok(len) = unpack_index(bytes, id, &mut out) {
        assert_eq!(len, out.len() as u64, "an index has the length that was told");
        assert_eq!(id, IndexDigest(Digest::of(&out)), "an index has the digest that was asked for");
    }
    if let Ok(table) = SegmentTable::parse(bytes, id) {
        let _ = (table.packed_len(), table.raw_len(), table.is_empty());
        let body = usize::try_from(table.body_offset()).unwrap_or(usize::MAX);
        for place in 0..=table.len().min(100) {
            let _ = table.decode(place, bytes.get(body..).unwrap_or_default());
        }
    }
}
