//! The runtime side of sandboxes, without HTTP: their configuration and limits, and the monitor, a
//! small process per sandbox that outlives daemon restarts.
//!
//! A sandbox is created in the order below. A crash may follow any step; [`remove`] cleans up after
//! each of them.
//!
//! 1. [`SandboxRecord::write`] in [`Phase::Creating`].
//! 2. [`prepare`]: directories, the disk limit, the secrets.
//! 3. The caller mounts the root at [`Layout::rootfs`], with its upper directory in [`Layout::rw`].
//! 4. [`write_bundle`]: merges the image configuration and the options into the OCI bundle.
//! 5. [`Monitor::spawn`]: the container is created but not started.
//! 6. [`Monitor::attach`], if the caller needs all output from the start; then [`Monitor::start`].

mod base64_bytes;
mod bundle;
mod calls;
mod cgroup;
mod client;
pub mod copy;
mod disk;
mod error;
mod exit;
mod files;
mod first;
mod id;
mod image;
mod layout;
mod lifecycle;
mod logs;
mod monitor;
mod mounts;
mod names;
mod options;
mod process;
mod protocol;
mod record;
mod runtime;
mod seccomp;
mod secrets;
mod security;
mod signals;
mod spawn;
mod spec;
#[cfg(test)]
mod spec_tests;
mod users;
mod watched;

pub use bundle::{Bundle, write_bundle};
pub use cgroup::Usage;
pub use cgroup::missing_controllers;
pub use client::{Frozen, Monitor, Stream, Thawed};
pub use error::{SandboxError, Stuck};
pub use exit::{Exit, ExitCause};
pub use id::SandboxId;
pub use layout::Layout;
pub use lifecycle::{
    Found, StopOptions, attach_disk, give_up, has_root_mount, list, prepare, processes, recover,
    remove, stop, usage,
};
pub use logs::LogMark;
pub use logs::{LogEntry, LogFrom, LogReader, LogStream, Waited};
pub use monitor::run as run_monitor;
pub use options::only_known;
pub use options::{
    FirstProcess, HostEntry, Limits, Network, RootAccess, SandboxOptions, Secret, SecretName,
    Stdin, Terminal,
};
pub use protocol::HEADER_LEN as FRAME_HEADER_LEN;
pub use protocol::{
    ExecOptions, FRAME_LEN_MAX, Frame, FrameKind, MonitorStatus, Output, Started, StdinFlow,
    StreamPosition, WindowSize,
};
pub use record::{Phase, SandboxRecord, name_in_record};
pub use runtime::KNOWN as RUNTIMES;
pub use security::{Confinement, Privileges, Seccomp, Security};
pub use signals::{SIGTERM, signal_number};
pub use spawn::reap_monitors;
