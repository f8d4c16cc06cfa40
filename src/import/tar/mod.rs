//! Reads tar archives: ustar, GNU and PAX, with all that these can say of an entry.
//!
//! The crate `tar` knows the layout of headers. It does not know PAX sparse files, values with
//! newlines or negative times, so the walk from header to header is done here.

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

pub(super) use archive::{Archive, EndMark};
pub(super) use entry::{Body, Entry};
pub(super) use stream::Budget;
