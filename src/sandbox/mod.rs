//! The runtime side of sandboxes, without HTTP: what runs in one, under which limits, and the small
//! process that looks after it while daemons come and go.
//!
//! A sandbox is made in this order. Each step can be the last before a crash: [`remove`] clears up
//! after any of them.
//!
//! 1. [`SandboxRecord::write`] in [`Phase::Creating`].
//! 2. [`prepare`]: directories, the disk limit, the secrets.
//! 3. The caller mounts the root at [`Layout::rootfs`], with its changes in [`Layout::rw`].
//! 4. [`write_bundle`]: the image's configuration and the options become the runtime's.
//! 5. [`Monitor::spawn`]: the container is there and has not started.
//! 6. Whoever wants all of the output calls [`Monitor::attach`]; then [`Monitor::start`].

mod base64_bytes;
mod bundle;
mod calls;
mod cgroup;
mod client;
mod disk;
mod error;
mod exit;
mod files;
mod first;
mod id;
mod image;
mod layout;
mod life;
mod logs;
mod monitor;
mod mounts;
mod options;
mod process;
mod protocol;
mod record;
mod runtime;
mod seccomp;
mod secrets;
mod signals;
mod spawn;
mod spec;
#[cfg(test)]
mod spec_tests;
mod sweep;
mod users;
mod watched;

pub use bundle::{Bundle, write_bundle};
pub use cgroup::Usage;
pub(crate) use cgroup::unescape;
pub use client::{Frozen, Monitor, Stream, Thawed};
pub use error::SandboxError;
pub use exit::{Exit, ExitCause};
pub use id::SandboxId;
pub use layout::Layout;
pub use life::{
    Found, StopOptions, attach_disk, list, prepare, processes, recover, remove, stop, usage,
};
pub use logs::{LogEntry, LogFrom, LogReader, LogStream, Waited};
pub use monitor::run as run_monitor;
pub use options::{
    FirstProcess, Limits, Network, RootAccess, SandboxOptions, Secret, SecretName, Stdin, Terminal,
};
pub use protocol::HEADER_LEN as FRAME_HEADER_LEN;
pub use protocol::{
    ExecOptions, FRAME_LEN_MAX, Frame, FrameKind, MonitorStatus, Output, Shown, Started, WindowSize,
};
pub use record::{Phase, SandboxRecord};
pub use signals::{SIGTERM, signal_number};
pub use spawn::reap_monitors;
