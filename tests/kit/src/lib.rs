//! What whole-system tests and benchmarks share: servers, links, trees, faults.

pub mod acl;
pub mod attributes;
pub mod cli;
pub mod compare;
pub mod content;
pub mod faults;
pub mod faulty_store;
mod http;
pub mod leftover;
pub mod link;
pub mod mounted;
pub mod output;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod rootfs;
pub mod scratch;
pub mod service;
pub mod shaped_store;
pub mod tree;
pub mod wait;
mod warm;
pub mod weed;

pub use compare::{Comparison, Holes};
pub use scratch::scratch;
