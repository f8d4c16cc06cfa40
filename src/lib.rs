//! The `inlay` command line and daemon.
// The macros panic if the stream takes nothing, e.g. a full disk or a closed pipe.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod log;
pub mod version;
