//! A small process that holds a host's FUSE connections, so that they outlive the server process.
//!
//! [`run`] is that process. [`Keeper`] is its client: a server claims the session and gets
//! [`Kept`], the descriptors of the connections and the ledger.
//!
//! With a descriptor store, such as a service manager's, a session can outlive its keeper, too:
//! [`Kept::store`] stores the descriptors there, and the next keeper gets them back as [`Stored`].

mod client;
mod device;
mod error;
mod refuse;
mod run;
mod session;
mod signals;
mod socket;
mod stored;
mod succession;
mod wire;

pub use client::{Keeper, Kept, KeptConnection, KeptSlot, SessionId};
pub(crate) use client::{Link, LinkEvent};
pub use device::SOURCE;
pub(crate) use device::first_request;
pub use error::KeeperError;
pub use run::{KeeperOptions, run};
pub use session::{Begin, give_up};
pub use stored::{Stored, stored_names};
pub use wire::{Claim, KeeperStatus, VERSION};
