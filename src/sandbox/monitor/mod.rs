//! The process that looks after one sandbox: small, and with a life of its own.
//!
//! Daemons come and go; a sandbox's streams, its exit code and its thawing must not depend on them. One
//! thread, no network, and it never touches the sandbox's root, which the daemon serves: while there is
//! no daemon, whoever looks there waits.

mod attach;
mod channel;
mod conn;
mod console;
mod exec;
mod first;
mod freeze;
mod reaper;
mod recent;
mod server;
mod setup;
mod shared;

pub use setup::run;
