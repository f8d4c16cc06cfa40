//! How the kernel sees a snapshot.
