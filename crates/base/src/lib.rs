//! Provides the host-level primitives that all other crates build on. Knows nothing of the product.
//!
//! [`durable`] is the only way to write a file of the state directory. [`record`] reads and writes
//! versioned JSON records and never treats an unreadable record as absent. [`remove`], [`trash`],
//! [`descent`], [`held`] and [`in_root`] handle directories that untrusted programs fill, [`text`]
//! their file names. [`descriptors`] and [`signals`] reset inherited process state; [`programs`]
//! finds executables of the host; [`mountinfo`] parses the kernel's mount table, [`bytes`] checks
//! partial reads. [`peer`] identifies the process behind a socket, and [`dying`] recognizes one that
//! was killed and can't exit. [`heap`] returns freed memory. [`inject`] arms faults for
//! tests.

pub mod boot;
pub mod bytes;
pub mod descent;
pub mod descriptors;
pub mod durable;
pub mod duration;
pub mod dying;
pub mod heap;
pub mod held;
pub mod in_root;
pub mod inject;
pub mod mountinfo;
pub mod peer;
pub mod programs;
pub mod record;
pub mod remove;
pub mod signals;
pub mod sockets;
pub mod text;
pub mod time;
pub mod trash;
