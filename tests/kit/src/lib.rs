//! What whole-system tests and benchmarks share.
