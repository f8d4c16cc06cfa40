//! The table of chunks at the end of a blob. A hostile index may name any table.

use inlay_store::ids::Digest;
use inlay_store::pack::read_toc;

/// Takes eight bytes as the table's place in the blob, and the rest as the table.
pub(crate) fn run(bytes: &[u8]) {
    let Some((offset, toc)) = bytes.split_first_chunk::<8>() else { return };
    let offset = u64::from_le_bytes(*offset);
    if let Ok(groups) = read_toc(toc, offset, Digest::of(toc)) {
        for group in groups {
            let end = group.offset + u64::from(group.stored_len);
            assert!(end <= offset, "a group lies before the table");
            for chunk in group.chunks {
                assert!(chunk.offset + chunk.len <= group.raw_len, "a chunk lies in its group");
            }
        }
    }
}
