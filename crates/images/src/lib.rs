//! Imports and exports directory trees: archives, image layouts, registries and directories.

pub mod export;
pub mod import;
