//! Snapshots and their bytes: the index format, packing, the remote store, the host cache, and
//! profiles.

pub mod acl;
mod blake3_tree;
pub mod cache;
pub mod format;
pub mod group;
pub mod ids;
pub mod pack;
pub mod profile;
pub mod remote;
pub mod tree;
pub mod unit;
pub mod units;
