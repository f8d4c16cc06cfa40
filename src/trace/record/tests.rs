//! Recordings of snapshots in memory.
