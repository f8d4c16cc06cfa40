//! Options of packing: the sizes that `docs/FORMAT.md` explains and `benches/` measures.

/// Sizes and compression level. Readers do not depend on them.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// zstd level, 1 to 19.
    pub level: i32,
    /// A group is closed when it reaches this decoded size, in bytes.
    pub group_len: usize,
    /// A blob is closed when its groups reach this size, in bytes.
    pub blob_len: usize,
    /// Files up to this size, in bytes, are stored in the index.
    pub inline_len_max: u64,
    /// Files up to this size, in bytes, are one chunk, packed with their neighbours.
    pub small_len_max: u64,
    /// Bounds of the content-defined chunks of larger files.
    pub chunk_len: ChunkLen,
    /// Number of compression threads.
    pub workers: usize,
    /// The maximum number of chunks of other snapshots kept in memory for dedup (44 bytes each).
    pub known_chunks_max: usize,
}

/// Bounds of FastCDC, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLen {
    /// Minimum; only the last chunk of a file may be shorter.
    pub min: usize,
    /// Target average.
    pub avg: usize,
    /// Maximum.
    pub max: usize,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            level: 3,
            group_len: 512 << 10,
            blob_len: 32 << 20,
            inline_len_max: 256,
            small_len_max: 256 << 10,
            chunk_len: ChunkLen { min: 16 << 10, avg: 64 << 10, max: 256 << 10 },
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            known_chunks_max: 4 << 20,
        }
    }
}
