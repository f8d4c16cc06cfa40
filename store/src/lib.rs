//! What a snapshot is and where its bytes live: the format, packing, the remote store, the host
//! cache.

pub mod format;
pub mod ids;
pub mod pack;
pub mod remote;
pub mod tree;
