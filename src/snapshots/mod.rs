//! Snapshots as a user knows them: found by name or id, opened, made.

mod create;
mod empty;
mod error;
mod find;
mod groups;
mod known;
mod open;
mod parts;
mod path_list;
mod publish;
mod resolve;
mod ship;
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
pub use known::known_chunks;
pub use open::{IndexFetch, open_index, open_index_watched};
pub use parts::parts;
pub use path_list::{read_paths, write_paths};
pub use publish::{Draft, publish};
pub(crate) use publish::{Written, set_name};
pub use resolve::{Reference, resolve};
pub use ship::Waiting;
pub(crate) use upload::Uploader;
pub(crate) use verified::VerifiedIndexes;
