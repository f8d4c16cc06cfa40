//! What whole-system tests and benchmarks share: servers, trees, faults.

pub mod acl;
pub mod attributes;
pub mod compare;
pub mod content;
pub mod scratch;
pub mod tree;

pub use compare::{Comparison, Holes};
pub use scratch::scratch;
