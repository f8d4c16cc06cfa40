//! Ctrl-C and SIGTERM, heard from before there is anything to clear away.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::error::CliError;
use crate::daemon::Client;

/// The signals that end a recording. As long as it lives they do not end this process.
pub(super) struct Endings {
    interrupted: Signal,
    terminated: Signal,
}

impl Endings {
    pub(super) fn heard(client: &Client) -> Result<Self, CliError> {
        // Within what waits: signals belong to a runtime.
        client.wait(async {
            Ok(Self {
                interrupted: signal(SignalKind::interrupt())?,
                terminated: signal(SignalKind::terminate())?,
            })
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
        }
    }
}
