//! Copies objects between this host and a running sandbox, as a tar archive on the way.
//!
//! Neither side trusts the other: paths are looked up below a root directory that they can't leave,
//! whatever symbolic links there are and however they change meanwhile, and nothing but regular files
//! is ever opened for its bytes.

mod error;
mod pack;
mod pieces;
mod place;
#[cfg(test)]
mod tests;
mod unpack;

pub use error::CopyError;
pub use pack::{Packed, pack};
pub use pieces::{PIECES, Piece, PieceReader, PieceWriter};
pub use place::{Place, Root};
pub use unpack::{Owners, Unpacked, unpack};
