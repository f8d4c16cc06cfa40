//! Opens, creates, publishes and verifies snapshots by name or id, and reads them through cache and
//! fetcher.

pub mod content;
mod create;
mod empty;
mod error;
mod find;
mod groups;
pub mod host;
mod known_chunks;
mod open;
mod path_list;
mod presentation;
mod publish;
mod resolve;
mod ship;
pub mod state;
mod tables;
mod upload;
mod verified;
pub mod verify;

pub use create::{CreateOptions, Created, Parent, create};
pub use empty::{EMPTY, empty_id, keep_empty};
pub use error::SnapshotError;
pub use find::{FindError, LastLink, find};
pub use groups::{
    FilesOfGroup, GroupsOfPaths, Keep, Part, PathPart, files_of_groups, groups_of_paths,
};
pub use known_chunks::{BlobCheck, Unreadable, known_chunks, known_chunks_checked};
pub use open::{IndexFetch, open_index, open_index_watched};
pub use path_list::{read_paths, write_paths};
pub use presentation::findings;
pub use publish::{Draft, publish};
pub use publish::{Written, add_to, set_name};
pub use resolve::{Reference, resolve};
pub use ship::{ShipError, Shipped, Waiting};
pub use upload::Uploader;
pub(crate) use verified::VerifiedIndexes;
