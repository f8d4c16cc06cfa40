//! A recording of the daemon, as the command that wants it holds it.

use std::time::Duration;

use crate::cli::Global;
use crate::cli::client::with_daemon;
use crate::cli::error::CliError;
use crate::daemon::{BeginTrace, Client, DaemonError, Pieces, TRACES, TraceBegun, trace_end};
use crate::trace::record::TraceEvents;

/// How long finding the paths of what was recorded may take.
const END_LIMIT: Duration = Duration::from_mins(2);
/// The longest first line.
const LINE_LEN_MAX: usize = 64 << 10;

/// A recording. Dropped, it ends, and nothing of it stays.
pub(super) struct Recording {
    client: Client,
    open: Pieces,
    begun: TraceBegun,
}

impl Recording {
    /// Begins one, with a daemon that is started if there is none.
    pub(super) fn begin(global: &Global, request: &BeginTrace) -> Result<Self, CliError> {
        let paths = global.paths()?;
        with_daemon(global, None, |_, _| {
            let client = Client::new(&paths)?;
            let (open, begun) = client.wait(async {
                let mut open = client.follow(TRACES, request).await?;
                let line = first_line(&mut open).await?;
                Ok::<_, DaemonError>((open, line))
            })?;
            let begun: TraceBegun = serde_json::from_slice(&begun)
                .map_err(|error| DaemonError::Conversation(error.to_string()))?;
            Ok(Self { client, open, begun })
        })
    }

    /// The daemon that records: it does not end meanwhile by itself.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The daemon, and what ends when the recording has ended without having been asked to.
    pub(super) fn parts(&mut self) -> (&Client, impl Future<Output = ()>) {
        let open = &mut self.open;
        let lost = async move { while let Ok(Some(_)) = open.next().await {} };
        (&self.client, lost)
    }

    /// Ends it and gives what was recorded.
    pub(super) fn end(self) -> Result<TraceEvents, CliError> {
        let path = trace_end(&self.begun.trace);
        Ok(self.client.wait(self.client.look(&path, &(), END_LIMIT))?)
    }
}

async fn first_line(open: &mut Pieces) -> Result<Vec<u8>, DaemonError> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < LINE_LEN_MAX {
        match open.next().await? {
            Some(piece) => line.extend_from_slice(&piece),
            None => break,
        }
    }
    Ok(line)
}
