//! Tests recordings of snapshots in memory.
