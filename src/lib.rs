//! The product.

pub mod cli;
pub mod config;
pub mod content;
pub mod daemon;
pub mod export;
pub mod host;
pub mod import;
pub mod mount;
pub mod snapshots;
pub mod state;
