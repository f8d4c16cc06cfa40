//! Reads tar archives: ustar, GNU and PAX with their extensions.
//!
//! The `tar` crate provides the layout of headers. It does not support PAX sparse files, values
//! with newlines or negative times, so this module iterates over the headers.

mod acl;
mod archive;
mod decode;
mod entry;
mod number;
mod pax;
mod peek;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;

pub use archive::{Archive, EndMark};
pub use entry::{Body, Entry};
pub(crate) use stream::Budget;
