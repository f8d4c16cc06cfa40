//! Concurrency limits of the daemon, derived from its limit of open files.
//!
//! Each class of requests has its own limit, so that no class can starve another.

/// Concurrency limits of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Connections of all classes.
    pub(super) connections: usize,
    /// Requests that last as long as their clients want: exec, logs, files, traces.
    pub(super) streams: usize,
    /// Long polls.
    pub(super) polls: usize,
    /// Requests whose work may wait for a store or a sandbox: mounts, snapshots, and creating,
    /// starting and stopping sandboxes.
    pub(super) work: usize,
    /// All other requests: status, unmounting, removing, stopping the daemon.
    pub(super) control: usize,
}

/// Upper bounds of the limits, however many files may be open.
const MOST: Limits =
    Limits { connections: 8192, streams: 2048, polls: 1024, work: 256, control: 128 };
/// Blocking threads beyond one per request: cleanup, cache, stores.
const BLOCKING_BESIDE: usize = 512;

impl Limits {
    /// Returns the limits for a process that may open `files` descriptors. A quarter of them are
    /// connections; a stream takes one descriptor besides its connection.
    pub(super) fn for_open_files(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let connections = (files / 4).clamp(128, MOST.connections);
        Self {
            connections,
            streams: (connections / 4).min(MOST.streams),
            polls: (connections / 8).min(MOST.polls),
            work: (connections / 16).min(MOST.work),
            control: (connections / 16).min(MOST.control),
        }
    }

    /// Returns the size of the blocking thread pool. Each request occupies at most one blocking
    /// thread, so no request waits for the thread of another.
    pub(super) fn blocking_threads(&self) -> usize {
        self.streams + self.polls + self.work + self.control + BLOCKING_BESIDE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_fits_into_the_connections_and_leaves_some() {
        for files in [0, 256, 1024, 4096, 65_536, 1 << 20, u64::MAX] {
            let limits = Limits::for_open_files(files);
            let Limits { connections, streams, polls, work, control } = limits;
            assert!(streams + polls + work + control < connections, "{limits:?}");
            assert!(control >= 8, "{limits:?}");
        }
        assert_eq!(Limits::for_open_files(1 << 20), MOST);
    }
}
