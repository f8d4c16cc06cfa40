//! What a snapshot is and where its bytes live: the format, packing, the remote store, the host
//! cache.

pub mod cache;
pub mod format;
pub mod group;
pub mod ids;
pub mod pack;
pub mod profile;
pub mod remote;
pub mod tree;
pub mod units;
