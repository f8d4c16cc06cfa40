//! Catches SIGINT and SIGTERM, so that a recording can be cleaned up.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::error::CliError;
use crate::daemon::Client;

/// Signals that end a recording. While it exists, they do not kill this process.
pub(super) struct Endings {
    interrupted: Signal,
    terminated: Signal,
}

impl Endings {
    pub(super) fn heard(client: &Client) -> Result<Self, CliError> {
        // Signal handlers must be registered within the runtime.
        client.wait(async {
            Ok(Self {
                interrupted: signal(SignalKind::interrupt())?,
                terminated: signal(SignalKind::terminate())?,
            })
        })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
        }
    }
}
