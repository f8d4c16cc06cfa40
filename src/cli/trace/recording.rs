//! Client side of a recording in the daemon.

use std::time::Duration;

use inlay_trace::record::TraceEvents;

use crate::cli::Global;
use crate::cli::client::with_daemon;
use crate::cli::error::CliError;
use crate::daemon::{BeginTrace, Client, ClientError, Pieces, TRACES, TraceBegun, trace_end};

/// Timeout for ending a recording: the daemon resolves the paths of recorded files.
const END_LIMIT: Duration = Duration::from_mins(2);
/// Maximum length of the first line of the response, in bytes.
const LINE_LEN_MAX: usize = 64 << 10;

/// A recording in progress. Drop ends and discards it.
pub(super) struct Recording {
    client: Client,
    open: Pieces,
    begun: TraceBegun,
}

impl Recording {
    /// Starts a recording, and the daemon if none is running.
    pub(super) fn begin(global: &Global, request: &BeginTrace) -> Result<Self, CliError> {
        let paths = global.paths()?;
        with_daemon(global, None, |_, _| {
            let client = Client::new(&paths)?;
            let (open, begun) = client.wait(async {
                let mut open = client.follow(TRACES, request).await?;
                let line = first_line(&mut open).await?;
                Ok::<_, ClientError>((open, line))
            })?;
            let begun: TraceBegun = serde_json::from_slice(&begun)
                .map_err(|error| ClientError::Conversation(error.to_string()))?;
            Ok(Self { client, open, begun })
        })
    }

    /// Returns the client of the recording daemon, which does not exit when idle while recording.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the client, and a future that completes if the recording ends unexpectedly.
    pub(super) fn parts(&mut self) -> (&Client, impl Future<Output = ()>) {
        let open = &mut self.open;
        let lost = async move { while let Ok(Some(_)) = open.next().await {} };
        (&self.client, lost)
    }

    /// Ends the recording and returns its events.
    pub(super) fn end(self) -> Result<TraceEvents, CliError> {
        let path = trace_end(&self.begun.trace);
        Ok(self.client.wait(self.client.query(&path, &(), END_LIMIT))?)
    }
}

async fn first_line(open: &mut Pieces) -> Result<Vec<u8>, ClientError> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < LINE_LEN_MAX {
        match open.next().await? {
            Some(piece) => line.extend_from_slice(&piece),
            None => break,
        }
    }
    Ok(line)
}
