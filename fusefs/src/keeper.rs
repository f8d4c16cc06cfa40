//! A small process that holds a host's FUSE connections, so that they outlive the process that
//! serves them.
//!
//! [`run`] is that process. [`Keeper`] is how others talk to it: a server claims the session and
//! gets [`Kept`], the descriptors of the connections and the ledger.

mod client;
mod device;
mod error;
mod refuse;
mod run;
mod signals;
mod socket;
mod turns;
mod wire;

pub use client::{Keeper, Kept, KeptConnection, KeptSlot, SessionId};
pub(crate) use client::{Link, LinkEvent};
pub use device::SOURCE;
pub use error::KeeperError;
pub use run::{KeeperOptions, run};
pub use wire::{Claim, KeeperStatus};
