//! The monitor: a small process per sandbox that is independent of the daemon.
//!
//! A sandbox's streams, exit code and thawing must survive a daemon restart. The monitor has one
//! thread and no network, and never accesses the sandbox's root: the daemon serves it, and while no
//! daemon is running, any access to it blocks.

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

#[cfg(test)]
pub(crate) use setup::leads_session;
pub use setup::run;
