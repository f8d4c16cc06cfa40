//! Copies objects between the host and a running sandbox as a tar archive.
//!
//! Neither side trusts the other: paths are resolved beneath a root directory that they can't
//! escape, even if symlinks change concurrently, and only regular files are
//! ever opened for their content.

mod channel;
mod content;
mod error;
mod install;
mod links;
mod pack;
mod resolve;
#[cfg(test)]
mod tests;
mod unpack;
mod xattrs;

pub use channel::{PIECES, Piece, PieceReader, PieceWriter};
pub use content::Holes;
pub use error::CopyError;
pub use pack::{Packed, pack};
pub use resolve::{Place, Root};
pub use unpack::{Keep, Owners, Unpacked, unpack};
pub use xattrs::FilePrivileges;
