//! A small process that holds a host's FUSE connections, so that they outlive the process that
//! serves them.
//!
//! [`run`] is that process. [`Keeper`] is how others talk to it: a server claims the session and
//! gets [`Kept`], the descriptors of the connections and the ledger.
//!
//! Where something else keeps descriptors, such as a service manager, a session can outlive its
//! keeper, too: [`Kept::store`] gives them there, and [`Stored`] is what the next keeper gets back.

mod client;
mod device;
mod error;
mod refuse;
mod run;
mod session;
mod signals;
mod socket;
mod stored;
mod turns;
mod wire;

pub use client::{Keeper, Kept, KeptConnection, KeptSlot, SessionId};
pub(crate) use client::{Link, LinkEvent};
pub use device::SOURCE;
pub use error::KeeperError;
pub use run::{KeeperOptions, run};
pub use session::{Begin, give_up};
pub use stored::{Stored, stored_names};
pub use wire::{Claim, KeeperStatus};
