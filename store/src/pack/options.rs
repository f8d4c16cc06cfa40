//! How snapshots are packed: the sizes that `docs/FORMAT.md` reasons about and `benches/` measures.

/// Sizes and strengths. Readers don't depend on them.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// zstd level, 1 to 19.
    pub level: i32,
    /// A group is closed once it decodes to this many bytes.
    pub group_len: usize,
    /// A blob is closed once its groups take this many bytes.
    pub blob_len: usize,
    /// Files up to this many bytes stand in the index itself.
    pub inline_len_max: u64,
    /// Files up to this many bytes are one chunk, packed with their neighbours.
    pub small_len_max: u64,
    /// Content-defined chunks of larger files: the least, the aimed and the most bytes.
    pub chunk_len: ChunkLen,
    /// Threads that compress.
    pub workers: usize,
    /// The most chunks of other snapshots that are kept in memory to compare with (44 bytes each).
    pub known_chunks_max: usize,
}

/// The bounds of FastCDC.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLen {
    /// No chunk but a file's last is shorter.
    pub min: usize,
    /// What the cutting aims at.
    pub avg: usize,
    /// No chunk is longer.
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
