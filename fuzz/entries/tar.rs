//! The tar import: one archive, and several as the layers of an image.

use std::io;
use std::ops::Range;

use inlay_images::import::{
    BytesLayer, Flattener, ImportOptions, Markers, NoProgress, import_tar_bytes,
};
use inlay_store::pack::{Content, FileSink, PackError};
use inlay_store::tree::TreeLimits;

/// Bounds so low that an archive which gets past them shows as memory or time.
const LIMITS: TreeLimits = TreeLimits { entries: 10_000, heap_bytes: 4 << 20 };
const DECODED_BYTES_MAX: u64 = 8 << 20;

/// Takes the bytes as one archive.
pub(crate) fn run(bytes: &[u8]) {
    let _ = import_tar_bytes(bytes, LIMITS, DECODED_BYTES_MAX, &mut Checks);
}

/// Takes the bytes as layers from the top down: two bytes of length and a tar archive, each.
pub(crate) fn run_layers(mut bytes: &[u8]) {
    let options = options();
    let mut sink = Checks;
    let mut flattener = Flattener::new(&options, Markers::Apply, &mut sink, &NoProgress);
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let (layer, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
        bytes = rest;
        if flattener.layer(&mut BytesLayer::new("layer", layer.to_vec())).is_err() {
            return;
        }
    }
    flattener.finish();
}

pub(super) fn options() -> ImportOptions {
    ImportOptions { tree: LIMITS, decoded_bytes_max: DECODED_BYTES_MAX, ..ImportOptions::default() }
}

/// A sink that keeps nothing and checks that what it is told is true.
pub(super) struct Checks;

impl FileSink for Checks {
    fn add_file(
        &mut self,
        size: u64,
        data: &[Range<u64>],
        reader: &mut dyn io::Read,
    ) -> Result<Content, PackError> {
        let mut end = 0;
        let mut want = 0;
        for range in data {
            assert!(end <= range.start && range.start < range.end, "ranges are sorted");
            end = range.end;
            want += range.end - range.start;
        }
        assert!(end <= size, "ranges are in the file");
        let have = io::copy(reader, &mut io::sink()).map_err(PackError::Read)?;
        if have == want { Ok(Content::Hole) } else { Err(PackError::Short { have, want }) }
    }
}
