//! Snapshots as a user knows them: found by name or id, opened, made.

mod create;
mod error;
mod known;
mod open;
mod parts;
mod publish;
mod resolve;
mod upload;
mod verified;
pub mod verify;

pub use create::{CreateOptions, Created, Parent, create};
pub use error::SnapshotError;
pub use known::known_chunks;
pub use open::open_index;
pub use parts::parts;
pub use publish::{Draft, publish};
pub use resolve::{Reference, resolve};
pub(crate) use verified::VerifiedIndexes;
