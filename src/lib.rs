//! The product.

pub mod bench;
pub mod capture;
pub mod cli;
pub mod config;
pub mod content;
pub mod copy;
pub mod daemon;
mod duration;
pub mod export;
pub mod host;
pub mod import;
mod in_root;
pub mod inject;
pub mod mount;
mod own_signals;
pub mod sandbox;
pub mod snapshots;
mod sockets;
pub mod state;
pub mod trace;
mod utc;
